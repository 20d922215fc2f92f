"""Estimates by measurement: the captured graph, run on batches, forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from unitify.capture.execution import (
    LossFunction,
    differentiate,
    leaf_parameters,
    on_leaves,
    run_captured,
    unchanged,
)
from unitify.capture.whole import Capture
from unitify.diagnostics import BatchesNeeded, NothingCaptured, UnitifyError, error_line
from unitify.estimates import Estimates
from unitify.measure.tally import Tally


@contextlib.contextmanager
def failures_of(model: nn.Module) -> Iterator[None]:
    """Inside, a run of ``model`` that fails raises ``UnitifyError`` (U102)."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        reason = f"it does not run: {type(error).__name__}: {error_line(error)}"
        raise UnitifyError(NothingCaptured(where=type(model).__name__, reason=reason)) from error


def measure(
    capture: Capture,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
    instead: Mapping[str, Tensor] | None = None,
) -> Estimates:
    """RMS of every floating value and of the gradient that reaches it, over ``batches``.

    ``batches``: lists of flat inputs; None takes the capture's example. ``instead``: leaves in
    place of parameters, by first name.
    Raises ``UnitifyError`` (U003) for an empty list.
    """
    tally = Tally()
    measure_into(tally, capture, batches, loss_fn, instead)
    return tally.estimates(capture)


def measure_into(
    tally: Tally,
    capture: Capture,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
    instead: Mapping[str, Tensor] | None = None,
) -> None:
    """Count every floating value and gradient over ``batches`` into ``tally``."""
    given = [list(capture.example)] if batches is None else batches
    count = 0
    with unchanged(capture.model):
        for inputs in given:
            _measure_one(capture, inputs, loss_fn, tally, instead or {})
            count += 1
    if not count:
        raise UnitifyError(BatchesNeeded())


def _measure_one(
    capture: Capture,
    inputs: list[Any],
    loss_fn: LossFunction | None,
    tally: Tally,
    instead: Mapping[str, Tensor],
) -> None:
    parameters = leaf_parameters(capture) | dict(instead)

    def run(leaves: list[Any]) -> None:
        # An input that cannot have a gradient makes several runs, of the same values.
        output = run_captured(capture, leaves, parameters, tally.observe)
        differentiate(output, [*parameters.values(), *leaves], loss_fn)

    on_leaves(run, inputs)
