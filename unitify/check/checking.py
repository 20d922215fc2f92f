"""``check``: from a subject and settings to an ``Outcome``.

    predict ─► measure ─► judge ─► find ─► select

Every RMS is predicted, because a finding shows the derivation of the prediction. Where an RMS is
measured, that is judged instead.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from unitify.analysis.analyze import Analysis, analyze
from unitify.capture.inputs import as_inputs
from unitify.capture.islands import flat_calls
from unitify.check.finding import Finding, worst_first
from unitify.check.judged import judged
from unitify.check.left_out import left_out
from unitify.check.outcome import Case, Outcome
from unitify.check.part_findings import PartChecker
from unitify.check.plan_faults import Comparison
from unitify.check.settings import Settings
from unitify.check.source_lines import SourceLines
from unitify.check.subject import Subject
from unitify.diagnostics import NothingJudged, UnitifyError, first_of
from unitify.drift.measuring import measure_running
from unitify.estimates import Estimates
from unitify.measure.captured import failures_of, measure, measure_into
from unitify.measure.tally import Tally
from unitify.measure.zeros import begun, completed
from unitify.part import Part
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable

#: Findings about the scale of a tensor, the clearest first: a flushed or clipped tensor says more
#: than lost digits. A tensor is reported with one of them.
_OF_SCALE = ("U803", "U804", "U802")


def steps(is_measured: bool) -> tuple[str, ...]:
    """The steps of ``check`` in order."""
    return ("predict", *(("measure",) if is_measured else ()), "find")


def check(
    subject: Subject,
    settings: Settings,
    rules: RuleTable,
    lines: SourceLines,
    *,
    target: str = "",
    is_measured: bool = False,
    batches: Iterable[Any] = (),
    comparison: Comparison | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Outcome:
    """Everything that is wrong with ``subject``, worst first.

    ``is_measured``: judge the RMS that is measured on ``batches``, or on the example inputs without
    any; else judge predictions. ``comparison``: plans to compare with. ``on_step`` is called with
    the name of each step once it is done, as ``steps`` lists them.

    Raises ``UnitifyError``: U104 or U111 for batches unlike the example, U102 where the model does
    not run, U809 where no tensor is judged.
    """
    clock = _Clock(on_step)
    batches = list(batches)
    analyses = [analyze(part.capture, rules) for part in subject.parts]
    clock.done("predict")
    tallies: list[Tally | None] = [None] * len(subject.parts)
    if is_measured:
        with failures_of(subject.model):
            tallies = [*_measured(subject, batches)]
        clock.done("measure")
    is_sure = is_measured and bool(batches)
    compared = dataclasses.replace(comparison or Comparison(), is_sure=is_sure)
    if compared.committed is not None and is_measured:
        grown = dict(_begun(subject, tallies, rules, batches))
        compared = dataclasses.replace(compared, begun=grown)
    outcome = outcome_of(subject, analyses, tallies, settings, rules, lines, target, compared)
    clock.done("find")
    return dataclasses.replace(outcome, seconds=clock.seconds)


def outcome_of(
    subject: Subject,
    analyses: Iterable[Analysis],
    tallies: Iterable[Tally | None],
    settings: Settings,
    rules: RuleTable,
    lines: SourceLines,
    target: str = "",
    comparison: Comparison | None = None,
) -> Outcome:
    """The findings in a subject whose parts were analyzed and, where there is a tally, measured."""
    tallies = list(tallies)
    found: list[Finding] = list(left_out(subject.diagnostics, lines))
    cases: list[Case] = []
    rounding: list[str] = []
    for part, analysis, tally in zip(subject.parts, analyses, tallies, strict=True):
        own = judged(part, subject.recipe, rules, settings.scope)
        checker = PartChecker(
            part, own, analysis, tally, settings, rules, lines, subject.is_transformed
        )
        found += checker.findings(comparison or Comparison())
        cases += checker.cases()
        rounding += checker.unjudged()
    selected = [f for f in found if settings.reports(f.code, f.names)]
    reported = [case for case in cases if settings.judges((case.name, case.module))]
    if not (reported or selected):
        problem = "none has a selected name" if cases else "none is stored or cast"
        raise UnitifyError(NothingJudged(where=target, problem=problem))
    return Outcome(
        target=target,
        findings=tuple(worst_first(_one_of_scale(selected))),
        cases=tuple(dict.fromkeys(reported)),
        judged_by=_in_words(subject, settings),
        figures="predicted" if None in tallies else "measured",
        notes=tuple(_notes(subject, settings, found, cases, rounding)),
    )


def _measured(subject: Subject, batches: list[Any]) -> list[Tally]:
    tallies = [Tally(counts_magnitudes=True) for _ in subject.parts]
    captures = {part.name: part.capture for part in subject.parts}
    if subject.module is None or not batches:
        calls = [as_inputs(subject.model, batch) for batch in batches]
        for tally, (name, captured) in zip(tallies, captures.items(), strict=True):
            measure_into(tally, captured, flat_calls(captures, name, calls) or None)
        return tallies
    parts = [subject.module.parts[name] for name in captures]
    measure_running(subject.module, parts, list(captures.values()), tallies, batches)
    return tallies


def _begun(
    subject: Subject, tallies: list[Tally | None], rules: RuleTable, batches: list[Any]
) -> Iterator[tuple[str, Estimates]]:
    """Estimates with numbers in place of parameters that are zero, as a plan is made of them."""
    captures = {part.name: part.capture for part in subject.parts}
    calls = [as_inputs(subject.model, batch) for batch in batches]
    for tally, (name, captured) in zip(tallies, captures.items(), strict=True):
        own = tally.estimates(captured) if tally is not None else {}
        if zero := begun(captured, own, rules):
            flat = flat_calls(captures, name, calls) or None
            yield name, completed(own, measure(captured, flat, None, zero))


def _one_of_scale(findings: list[Finding]) -> list[Finding]:
    """Keeps one finding about the scale of each tensor, the clearest and worst; and all others."""
    chosen: dict[tuple[str, ...], Finding] = {}

    def rank(finding: Finding) -> tuple[int, float]:
        order = _OF_SCALE.index(finding.code) if finding.code in _OF_SCALE else 0
        return order, -(finding.level or 0.0)

    for finding in sorted(findings, key=rank):
        kind = "scale" if finding.code in _OF_SCALE else finding.code
        chosen.setdefault((kind, *finding.key[1:]), finding)
    return list(chosen.values())


def _in_words(subject: Subject, settings: Settings) -> str:
    if settings.format == "unit":
        low, high = settings.limits.band
        return f"RMS within {low:g} to {high:g}"
    if settings.format:
        return f"all stored tensors in {settings.format}"
    recipe = subject.recipe
    formats = f"{recipe.forward.name}/{recipe.backward.name}"
    others = ", all others by their RMS" if settings.values == "stored" else ""
    return f"what the recipe {recipe.name} casts in {formats}{others}"


def _notes(
    subject: Subject,
    settings: Settings,
    found: list[Finding],
    cases: list[Case],
    rounding: list[str],
) -> Iterator[str]:
    if subject.recipe.scaling == "amax" and not settings.format:
        yield "casts of this recipe find their own factor at run time and are not judged"
    if rounding:
        names = first_of(rounding)
        yield f"not judged, because zero but for rounding: the gradient of {names}"
    if len(subject.parts) > 1:
        yield "captured in parts: predicted gradients start at one at the outputs of each part"
    if not any(_has_loss(part) for part in subject.parts):
        yield "no output is a loss: gradients start at one in every element of the outputs"
    known = {name for finding in found for name in finding.names}
    known |= {name for case in cases for name in (case.name, case.module)}
    for pattern in settings.unmatched(known):
        yield f"the pattern {pattern!r} matches nothing"


def _has_loss(part: Part) -> bool:
    """Is an output a single number, where gradients start?"""
    (output,) = (node for node in part.capture.graph.nodes if node.op == "output")
    held = [node.meta.get("val") for node in output.all_input_nodes if is_scalable(node)]
    return any(isinstance(value, Tensor) and not value.dim() for value in held)


class _Clock:
    """Seconds of every step."""

    def __init__(self, on_step: Callable[[str], None] | None) -> None:
        self.on_step = on_step
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self.last
        self.last = now
        if self.on_step is not None:
            self.on_step(step)
