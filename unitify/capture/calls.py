"""Runs a model to see how each submodule is called, and which modules use each parameter."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from unitify.capture.example import Inputs, copied, mapped
from unitify.capture.execution import backward_starts, unchanged
from unitify.capture.watching import Watch, watched
from unitify.capture.whole import nothing_captured

#: A module that is called in more ways than this is recorded for the first ones.
_MOST = 16


@dataclass
class Calls:
    """What runs of a model show about its calls.

    ``inputs``: the calls of each submodule, one of every form. ``uses``: each parameter, with the
    modules that were running at each use. ``unfit``: modules that no graph can replace, and why.
    ``distinct``: the runs with a call of a new form.
    """

    inputs: dict[nn.Module, dict[Any, Inputs]] = field(default_factory=dict)
    uses: dict[nn.Parameter, set[tuple[nn.Module, ...]]] = field(default_factory=dict)
    unfit: dict[nn.Module, str] = field(default_factory=dict)
    distinct: list[Inputs] = field(default_factory=list)


class _ParameterUse(TorchFunctionMode):
    """Notes which modules are running where a parameter's contents are used."""

    def __init__(self, calls: Calls, watch: Watch) -> None:
        super().__init__()
        self.calls, self.watch = calls, watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Reading a size or a type does not use the contents.
        if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result)):
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, nn.Parameter):
                    self.calls.uses.setdefault(leaf, set()).add(tuple(self.watch.running))
        return result


def calls_of(model: nn.Module, made: Sequence[Inputs]) -> Calls:
    """Make these calls of ``model``, and restore it afterwards.

    Raises ``UnitifyError`` (U102) where it does not run.
    """
    calls = Calls()

    def begins(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if any(_is_transformed(leaf) for leaf in pytree.tree_leaves((given, named))):
            calls.unfit.setdefault(
                module, "it is called by a transform of torch.func, such as vmap"
            )
            return
        received = calls.inputs.setdefault(module, {})
        form = _form(given, named)
        if form not in received and len(received) < _MOST:
            received[form] = mapped(copied, (given, named))

    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            calls.unfit[module] = "it is a TorchScript module"

    def run(call: Inputs) -> Any:
        given, named = mapped(copied, call)
        return model(*given, **named)

    def observe(call: Inputs, gradients: bool) -> None:
        with (
            unchanged(model, wholly=True),
            torch.set_grad_enabled(gradients),
            watched(model, begins) as watch,
            _ParameterUse(calls, watch),
        ):
            run(call)

    try:
        for call in made:
            known = sum(map(len, calls.inputs.values()))
            try:
                # Without gradients, so that tensors that a module keeps hold no graph.
                observe(call, gradients=False)
            except RuntimeError:
                # A call may differentiate inside.
                observe(call, gradients=True)
            # A backward pass in Python may use parameters, too. Some models refuse to run it.
            with (
                contextlib.suppress(Exception),
                unchanged(model, wholly=True),
                torch.enable_grad(),
                watched(model) as watch,
                _ParameterUse(calls, watch),
            ):
                _run_backward(*backward_starts(run(call), None))
            if not calls.distinct or sum(map(len, calls.inputs.values())) > known:
                calls.distinct.append(call)
    except Exception as error:
        raise nothing_captured(f"it does not run: {type(error).__name__}: {error}") from error
    return calls


def _form(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The form of a call, as a recording distinguishes calls: structure, sizes, types, values."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    kinds = ((_sizes(x), x.dtype) if isinstance(x, torch.Tensor) else repr(x) for x in leaves)
    return (repr(spec), *kinds)


def _sizes(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A nested tensor has those of each part."""
    return tuple(p.shape for p in tensor.unbind()) if tensor.is_nested else tuple(tensor.shape)


def _run_backward(starts: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """``torch.autograd.backward``, which would switch off the mode that notes uses."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(
        tuple(starts), tuple(gradients), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _is_transformed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(
        value
    )
