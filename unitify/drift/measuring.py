"""The present true values of a module: its captures on present weights, and a run of them.

Takes a transformed module. Gives the captures of its parts on the present weights, and counts every
true value and gradient of a run into a tally. The module does not change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.execution import (
    GraphRunner,
    LossFunction,
    differentiate,
    leaf_parameters,
    on_leaves,
    unchanged,
)
from unitify.capture.inputs import as_inputs
from unitify.capture.tree import copy_of
from unitify.capture.whole import Capture
from unitify.diagnostics import BatchesNeeded, UnitifyError
from unitify.measure.captured import failures_of
from unitify.measure.tally import Tally
from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.scale_plan import Scale


def true_capture(part: UnitScaledModule) -> Capture:
    """The capture of a part on its present weights and buffers, at true scale."""
    model = copy_of(part._tree)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(part.plan.parameters.get(name, Scale()).fwd)
    return replace(part.capture, model=model)


def measure_running(
    module: nn.Module,
    parts: list[UnitScaledModule],
    captures: list[Capture],
    tallies: list[Tally],
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
) -> None:
    """Run ``module`` without casts, and count each part's true values and gradients into its tally.

    Raises ``UnitifyError``: U003 without batches, U102 for one with which it does not run.
    """
    leaves = [leaf_parameters(captured) for captured in captures]
    count = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(failures_of(module))
        stack.enter_context(unchanged(module))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for part, captured, parameters, tally in zip(parts, captures, leaves, tallies, strict=True):
            stack.enter_context(part.running(_runner(captured, parameters, tally)))
        for batch in batches:
            count += 1
            flat, spec = pytree.tree_flatten(as_inputs(module, batch))
            weights = [p for own in leaves for p in own.values()] + [*module.parameters()]
            on_leaves(partial(_run_once, module, spec, weights, loss_fn), flat)
    if not count:
        raise UnitifyError(BatchesNeeded())


def _run_once(
    module: nn.Module,
    spec: pytree.TreeSpec,
    parameters: list[Tensor],
    loss_fn: LossFunction | None,
    inputs: list[Any],
) -> None:
    args, kwargs = pytree.tree_unflatten(inputs, spec)
    differentiate(module(*args, **kwargs), [*parameters, *inputs], loss_fn)


def _runner(captured: Capture, parameters: dict[str, Tensor], tally: Tally) -> Callable[..., Any]:
    def attribute(target: str) -> Any:
        return parameters[target] if target in parameters else captured.attribute(target)

    def run(_part: UnitScaledModule, *inputs: Any) -> Any:
        return GraphRunner(captured.graph, attribute, tally.observe).run(*inputs)

    return run
