"""RMS of every value of a recording, from a run, or from analysis where weights hold no data.

Recording ─► measure | analyze ─► Estimated
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from unitify.analysis.analyze import analyze
from unitify.capture.execution import LossFunction
from unitify.capture.inputs import Inputs, written_inputs
from unitify.capture.islands import Recording, path_of
from unitify.capture.whole import Capture
from unitify.diagnostics import (
    Diagnostic,
    RunNotFinite,
    UnitifyError,
    UnknownOption,
    ZeroParameters,
    first_of,
)
from unitify.estimates import Estimates, Rms
from unitify.measure.captured import failures_of
from unitify.measure.recorded import measure_recorded
from unitify.measure.zeros import begun, completed
from unitify.naming import joined
from unitify.part import Part, parts_of
from unitify.rulebook.extremes import extreme_values
from unitify.rulebook.rule_table import RuleTable

#: The sources of scales. "auto" measures where weights hold data, and predicts elsewhere.
SCALES = ("auto", "measured", "analysis")
#: A note names values whose measured and predicted RMS differ by more octaves than this. In a
#: trained net predictions are off by up to seven times (docs/results/estimates.md), which is less
#: than three octaves.
FAR = 4.0


@dataclass(frozen=True)
class Estimated:
    """Parts with estimates, and their source: ``scales`` is "measured" or "analysis".

    ``diagnostics``: estimates that do not follow ``scales`` or the rules. ``calls``: those that
    were run.
    """

    parts: tuple[Part, ...]
    scales: str
    diagnostics: tuple[Diagnostic, ...] = ()
    calls: tuple[Inputs, ...] = ()


def check_scales(scales: str) -> None:
    """Raises ``UnitifyError`` (U001) where ``scales`` is not one of ``SCALES``."""
    if scales not in SCALES:
        raise UnitifyError(UnknownOption(option="scales", value=scales, choices=", ".join(SCALES)))


def estimated(
    recorded: Recording,
    scales: str,
    calls: list[Inputs],
    loss_fn: LossFunction | None,
    rules: RuleTable,
    *,
    drawn: bool = False,
) -> Estimated:
    """Estimates of every value of ``recorded``. ``calls``: the inputs of a run.

    ``drawn``: nobody gave them. Longer ones are then drawn, where the model takes them.
    Raises ``UnitifyError``: U001 like ``check_scales``; U003 for a run without calls; U102 for a
    call that fails.
    """
    if measures(scales, recorded.parts.values()):
        if drawn:
            longer = [written_inputs(recorded.model)]
            # A graph of one length, or a loss with its own targets, takes the drawn call alone.
            with contextlib.suppress(Exception):
                return _measured(recorded, longer, loss_fn, rules)
        return _measured(recorded, calls, loss_fn, rules)
    found: list[Part] = []
    notes: list[Diagnostic] = []
    for part in parts_of(recorded.parts):
        weight_rms = None if part.capture.reparametrization is None else 1.0
        analysis = analyze(part.capture, rules, _loss(part, loss_fn), weight_rms)
        found.append(replace(part, estimates=analysis.estimates))
        notes += analysis.diagnostics
    return Estimated(tuple(found), "analysis", tuple(notes))


def measures(scales: str, captures: Iterable[Capture]) -> bool:
    """Does ``scales`` need a run of ``captures``? Raises like ``check_scales``."""
    check_scales(scales)
    return scales == "measured" or (scales == "auto" and all(map(can_run, captures)))


def can_run(capture: Capture) -> bool:
    """Is a run useful: do weights hold data, and are they the model's own?

    A scheme draws weights. Their distribution is known, so a run would add nothing.
    """
    return capture.reparametrization is None and capture.holds_weights


def far_apart(predicted: float | None, measured: float | None) -> bool:
    """Do two estimates of one RMS differ by more than ``FAR`` octaves?"""
    if not (predicted and measured and math.isfinite(predicted) and math.isfinite(measured)):
        return False
    return abs(math.log2(predicted) - math.log2(measured)) > FAR


def _measured(
    recorded: Recording, calls: list[Inputs], loss_fn: LossFunction | None, rules: RuleTable
) -> Estimated:
    found: list[Part] = []
    notes: list[Diagnostic] = []
    with failures_of(recorded.model):
        run = measure_recorded(recorded, calls, loss_fn)
        zero = {name: begun(recorded.parts[name], own, rules) for name, own in run.items()}
        if any(zero.values()):
            second = measure_recorded(recorded, calls, loss_fn, zero)
            run = {name: completed(own, second[name]) for name, own in run.items()}
            names = [joined(path_of(part), name) for part, own in zero.items() for name in own]
            where = type(recorded.model).__name__
            notes.append(ZeroParameters(where=where, count=len(names), names=first_of(names)))
    for part in parts_of(recorded.parts):
        captured, estimates = part.capture, run[part.name]
        lost = _not_finite(captured, estimates, rules)
        if lost:
            where = type(captured.model).__name__
            shown = ", ".join(list(lost)[:3])
            notes.append(RunNotFinite(where=where, count=len(lost), names=shown))
            predicted = analyze(captured, rules, _loss(part, loss_fn)).estimates
            estimates = {**estimates, **{v: _mended(estimates[v], predicted[v]) for v in lost}}
        found.append(replace(part, estimates=estimates))
    return Estimated(tuple(found), "measured", tuple(notes), tuple(calls))


def _not_finite(captured: Capture, estimates: Estimates, rules: RuleTable) -> list[str]:
    """Values that were infinite or NaN in the run, except those that carry masks."""
    lost = [
        name
        for name, rms in estimates.items()
        if not (math.isfinite(rms.forward or 0.0) and math.isfinite(rms.backward or 0.0))
    ]
    if not lost:
        return lost
    held = extreme_values(captured.graph, rules, captured.example, captured.attribute)
    masks = {node.name for node in held}
    return [name for name in lost if name not in masks]


def _mended(measured: Rms, predicted: Rms) -> Rms:
    kept: dict[str, Any] = {
        direction: getattr(predicted, direction)
        for direction in ("forward", "backward")
        if not math.isfinite(getattr(measured, direction) or 0.0)
    }
    return replace(measured, **kept)


def _loss(part: Part, loss_fn: LossFunction | None) -> LossFunction | None:
    """The loss of the whole model; an island has none, but a unit gradient at its outputs."""
    return None if part.path else loss_fn
