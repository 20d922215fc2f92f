"""Estimates of a recording by measurement: of its one graph, or of islands within the model.

An island run alone would have a unit gradient at its outputs. Within the model that gradient may
differ by octaves. So the model's own code runs on the batches, and every island runs its graph.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.execution import (
    LossFunction,
    differentiate,
    leaf_parameters,
    on_leaves,
    run_captured,
    unchanged,
)
from unitify.capture.exporting import without_cache
from unitify.capture.inputs import Inputs
from unitify.capture.islands import Recording, flat_calls, path_of
from unitify.capture.whole import Capture
from unitify.diagnostics import BatchesNeeded, UnitifyError
from unitify.estimates import Estimates
from unitify.measure.captured import measure
from unitify.measure.tally import Tally


def measure_recorded(
    recording: Recording,
    calls: Iterable[Inputs],
    loss_fn: LossFunction | None = None,
    instead: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> dict[str, Estimates]:
    """RMS of every value and of its gradient over ``calls`` of the model, by part.

    ``instead``: by part, leaves in place of parameters.

    A part that no call reaches (the graph of the other mode, a branch that is not taken) is
    measured alone, on its recorded inputs. So is every island of a model whose own backward pass
    fails.

    Raises ``UnitifyError``: U003 without calls; U104 and U111 for a call that fits no recording.
    """
    calls, instead = list(calls), instead or {}
    if any(path_of(name) for name in recording.parts):
        return _measure_islands(recording, calls, loss_fn, instead)
    return {
        name: measure(
            captured, flat_calls(recording.parts, name, calls), loss_fn, instead.get(name)
        )
        for name, captured in recording.parts.items()
    }


def _measure_islands(
    recording: Recording,
    calls: list[Inputs],
    loss_fn: LossFunction | None,
    instead: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Estimates]:
    model, parts = recording.model, recording.parts
    tallies = {name: Tally() for name in parts}
    leaves = {n: leaf_parameters(c) | dict(instead.get(n, {})) for n, c in parts.items()}
    weights = [*model.parameters(), *(p for own in leaves.values() for p in own.values())]

    def run(spec: pytree.TreeSpec, flat: list[Any]) -> None:
        args, kwargs = pytree.tree_unflatten(flat, spec)
        differentiate(model(*args, **kwargs), [*weights, *flat], loss_fn)

    if not calls:
        raise UnitifyError(BatchesNeeded())
    try:
        with (
            unchanged(model, wholly=True),
            without_cache(model),
            _graphs_in_place(model, parts, leaves, tallies),
        ):
            for call in calls:
                flat, spec = pytree.tree_flatten(call)
                on_leaves(functools.partial(run, spec), flat)
    except UnitifyError:
        raise
    except Exception:
        # The model's own code may raise anything. ``verify`` runs it again and reports the error.
        tallies = {name: Tally() for name in parts}
    return {
        name: tallies[name].estimates(captured)
        if tallies[name].elements
        else measure(captured, None, None, instead.get(name))
        for name, captured in parts.items()
    }


@contextlib.contextmanager
def _graphs_in_place(
    model: nn.Module,
    parts: Mapping[str, Capture],
    leaves: Mapping[str, dict[str, Tensor]],
    tallies: Mapping[str, Tally],
) -> Iterator[None]:
    """A context in which every island runs the captured graph of its mode, and is counted."""
    paths = dict.fromkeys(path_of(name) for name in parts)
    with contextlib.ExitStack() as stack:
        for path in paths:
            module = model.get_submodule(path)
            runs = [
                (captured, functools.partial(_run, captured, leaves[n], tallies[n]))
                for n, captured in parts.items()
                if path_of(n) == path
            ]
            stack.callback(module.__dict__.pop, "forward")
            module.__dict__["forward"] = _forward_of(module, runs)
        yield


def _run(captured: Capture, leaves: dict[str, Tensor], tally: Tally, inputs: list[Any]) -> Any:
    return run_captured(captured, inputs, leaves, tally.observe)


def _forward_of(
    module: nn.Module, runs: Sequence[tuple[Capture, Callable[[list[Any]], Any]]]
) -> Callable[..., Any]:
    own = module.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        mode = "train" if module.training else "eval"
        for captured, run in runs:
            if captured.mode in (None, mode):
                inputs = captured.call.fitted(args, kwargs)
                if isinstance(inputs, list):
                    return run(inputs)
        return own(*args, **kwargs)

    return forward
