"""A Hugging Face model on the memory-mapped files of its folder: no tensor is read before its use.

Takes a folder; gives a model whose parameters are the tensors in the files. Where names or types in
the files differ from the model's, transformers reads it into memory.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.computed import leave_meta
from unitify.capture.execution import run_captured
from unitify.capture.inputs import Inputs, device_of
from unitify.capture.islands import Recording, record
from unitify.checkpoint.filling import NOTHING
from unitify.checkpoint.pretrained import from_config, read_pretrained
from unitify.checkpoint.state_dict import fit, without_numbers
from unitify.diagnostics import Diagnostic


def mapped_model(
    folder: Path, weights: Mapping[str, Tensor]
) -> tuple[nn.Module, tuple[Diagnostic, ...]]:
    """The model of ``folder`` in eval mode, on the ``weights`` of its files; and notes.

    Raises ``UnitifyError`` like ``read_pretrained``.
    """
    with _parameters_on_meta():
        model = from_config(folder, weights)
    if fit(model, weights, same_types=True).problem:
        model, notes = read_pretrained(folder, NOTHING, weights)
        return model.requires_grad_(False), notes
    model.load_state_dict(weights, strict=False, assign=True)
    tie: Any = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()
    # An export needs no gradients.
    return model.requires_grad_(False), ()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """A context in which new parameters are on the meta device; buffers are not."""
    register = nn.Module.register_parameter

    def registered(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = registered  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def recorded(model: nn.Module, calls: Sequence[Inputs], *, runs: bool) -> Recording:
    """The recording of ``model`` on the meta device: no weight is read or copied.

    A model that does not run on the meta device, and a graph with tensors of its own, are recorded
    on the weights; and so is, if it ``runs`` afterwards, a graph that does not run on them, because
    the model's code asks for the device. Raises ``UnitifyError`` like ``record``.
    """
    made = _recorded_on_meta(model, calls)
    if made is None or (runs and not _runs(made)):
        made = record(model, *calls[0], further=calls[1:])
    return made


def _runs(made: Recording) -> bool:
    """Does the graph of a recording run on its example?"""
    assert made.whole is not None
    try:
        with torch.no_grad():
            run_captured(made.whole, list(made.whole.example))
    except Exception:  # Operators may raise anything.
        return False
    return True


def _recorded_on_meta(model: nn.Module, calls: Sequence[Inputs]) -> Recording | None:
    """The recording on the meta device; None where it is not valid on the weights."""
    device = device_of(model)
    try:
        with _on_meta(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (args, kwargs), *further = pytree.tree_map_only(
                Tensor, lambda t: t.to("meta"), list(calls)
            )
            made = record(model, args, kwargs, further=further)
    except Exception:  # A model may raise anything on the meta device.
        return None
    whole = made.whole
    if whole is None or whole.made or any(isinstance(c, Tensor) for c in whole.constants.values()):
        return None
    for node in whole.graph.nodes:
        leave_meta(node, device)
    return replace(made, parts={"": replace(whole, example=tuple(whole.flat_inputs(*calls[0])))})


@contextlib.contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """A context in which parameters and buffers of ``model`` are on the meta device."""
    memo: dict[int, Tensor] = {}
    held: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        tables: tuple[Any, ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    held.append((table, name, tensor))
    try:
        for table, name, tensor in held:
            if id(tensor) not in memo:
                memo[id(tensor)] = without_numbers(tensor)
            table[name] = memo[id(tensor)]
        yield
    finally:
        for table, name, tensor in held:
            table[name] = tensor
