"""Does a module with casts give finite numbers on the example, where its model does?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitify.capture.execution import LossFunction
from unitify.diagnostics import CastNotFinite, Diagnostic, UnitifyWarning, first_of
from unitify.module.unit_scaled import UnitScaledModule
from unitify.verifying.calls import Call
from unitify.verifying.results import named
from unitify.verifying.side import asking_of, run, sides_of


def lost_to_casts(
    model: nn.Module,
    module: UnitScaledModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    loss_fn: LossFunction | None = None,
) -> tuple[Diagnostic, ...]:
    """A warning (U411) where results or gradients of one call are infinite or NaN by casts alone.

    The model is one that has been verified, so that both run.
    """
    if any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        return ()
    call = Call("the example", module.training, (args, kwargs))
    mine, theirs = sides_of(model, module)
    with warnings.catch_warnings():
        # A first call says whether the model's own code runs in place of the graph.
        warnings.simplefilter("ignore", UnitifyWarning)
        asking, results = asking_of(theirs, call, loss_fn, keeps_gradients=True)
    found = _finite(named(results))
    if all(bool(is_finite.all()) for is_finite in found.values()):
        return ()
    own = _finite(named(run(mine, call, asking, loss_fn, keeps_gradients=True)))
    lost = [
        name
        for name, is_finite in found.items()
        if name in own and bool((own[name] & ~is_finite).any())
    ]
    if not lost:
        return ()
    return (CastNotFinite(where=type(model).__name__, results=first_of(lost, 1)),)


def _finite(results: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.isfinite(value)
        for name, value in results.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
