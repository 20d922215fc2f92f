"""Estimates by measurement: the captured graph, run on batches, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import (
    LossFunction,
    backward_starts,
    leaf_parameters,
    on_leaves,
    run_captured,
    unchanged,
)
from unitify.capture.whole import Capture
from unitify.diagnostics import BatchesNeeded, UnitifyError
from unitify.estimates import Estimates, Rms
from unitify.operations.laws import is_scalable


def measure(
    capture: Capture,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> Estimates:
    """RMS of every floating value and of the gradient that reaches it, over ``batches``.

    ``batches``: lists of flat inputs; the capture's own example where None.
    Raises ``UnitifyError`` (U003) for an empty list.
    """
    tally = Tally()
    measure_into(tally, capture, batches, loss_fn, seed)
    return tally.estimates(capture)


def measure_into(
    tally: Tally,
    capture: Capture,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
) -> None:
    """Show ``tally`` every floating value and gradient over ``batches``, as ``measure`` does."""
    given = [list(capture.example)] if batches is None else batches
    count = 0
    with unchanged(capture.model, seed):
        for inputs in given:
            _measure_one(capture, inputs, loss_fn, tally)
            count += 1
    if not count:
        raise UnitifyError(BatchesNeeded())


class Tally:
    """Sums of squares and element counts by (value, direction)."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], list[float]] = {}

    def observe(self, node: fx.Node, value: Any) -> None:
        """Count a result as its node is run, and its gradient when that arrives."""
        if not is_scalable(node) or not isinstance(value, Tensor):
            return
        self.add(node.name, 0, value)
        if value.requires_grad:
            value.register_hook(lambda gradient: self.add(node.name, 1, gradient))

    def estimates(self, capture: Capture) -> Estimates:
        """What was counted, for every floating value of ``capture``."""
        return {
            node.name: Rms(self.rms(node.name, 0), self.rms(node.name, 1))
            for node in capture.graph.nodes
            if is_scalable(node)
        }

    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        """Count ``tensor`` as value (0) or gradient (1) of ``name``."""
        norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
        entry = self.sums.setdefault((name, direction), [0.0, 0.0])
        entry[0] += norm * norm
        entry[1] += tensor.numel()

    def rms(self, name: str, direction: int) -> float | None:
        """Root mean square of all that was counted; None for nothing."""
        if (name, direction) not in self.sums:
            return None
        total, count = self.sums[name, direction]
        return math.sqrt(total / count) if count else None


def _measure_one(
    capture: Capture, inputs: list[Any], loss_fn: LossFunction | None, tally: Tally
) -> None:
    parameters = leaf_parameters(capture)

    def run(leaves: list[Any]) -> None:
        # Where an input refuses a gradient there are several runs, of the same values.
        output = run_captured(capture, leaves, parameters, tally.observe)
        starts, gradients = backward_starts(output, loss_fn)
        targets = [p for p in parameters.values() if p.requires_grad]
        targets += [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        if starts and targets:
            torch.autograd.grad(starts, targets, gradients, allow_unused=True)

    on_leaves(run, inputs)
