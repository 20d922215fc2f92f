"""``gather``: from a transformed module to its ``Numerics``.

    module ─► analyze ─► measure ─► choices ─► signal to noise ─► values ─► check

The module does not change. ``notes`` names what is missing, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unitify.analysis.analyze import analyze
from unitify.capture.execution import LossFunction
from unitify.capture.inputs import as_inputs
from unitify.capture.islands import flat_calls, path_of
from unitify.capture.whole import Capture
from unitify.cast.casting import chosen
from unitify.check.settings import Settings
from unitify.check.source_lines import SourceLines
from unitify.drift.measuring import measure_running, true_capture
from unitify.drift.monitor import Record
from unitify.estimating import FAR, far_apart
from unitify.formats.losses import JUDGED
from unitify.formats.table import FORMATS, Format
from unitify.measure.captured import measure_into
from unitify.measure.tally import Tally
from unitify.module.assembly import parts_in
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part, value_name
from unitify.recipe.recipe import FP8, Recipe
from unitify.report.class_graph import class_graph
from unitify.report.judging import Judge
from unitify.report.numerics import DIRECTIONS, Numerics, Value
from unitify.report.origins import Anywhere
from unitify.report.sqnr import not_shown, signal_to_noise
from unitify.report.values import Gathered, values_of
from unitify.rule_trials.listing import row
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of a report other than the module. ``batches``: inputs of calls to measure on.

    ``settings``: the limits by which ``unitify check`` judges. ``is_drawn``: were the recorded
    inputs drawn? ``exact``: what the conversion found, for a converted folder.
    """

    rules: RuleTable
    batches: tuple[Any, ...] = ()
    loss_fn: LossFunction | None = None
    target: str = ""
    drift: tuple[Record, ...] = ()
    settings: Settings = field(default_factory=Settings)
    is_drawn: bool = False
    exact: bool | None = None


def gather(module: UnitScaledModule, known: ReportInputs) -> Numerics:
    """The numerics of every value of ``module``, in the original and as transformed.

    Raises ``UnitifyError`` where the module cannot be called with a batch.
    """
    notes: list[str] = []
    recipe = module.recipe or FP8
    captures = {name: _capture(part) for name, part in module.parts.items()}
    analyses = {n: analyze(c, known.rules, _loss(n, known)) for n, c in captures.items()}
    if module.scheme:
        notes.append("the original shown here is the true model of the scheme")
    batches = known.batches
    tallies = {name: Tally(counts_magnitudes=True) for name in captures}
    is_measured = all(capture.holds_weights for capture in captures.values())
    if not is_measured:
        batches = ()
        notes.append("nothing was measured: the weights are on the meta device")
    elif not batches:
        kind = "drawn" if known.is_drawn else "recorded"
        notes.append(f"measured on the {kind} inputs, because no batches were given")
        for name, capture in captures.items():
            measure_into(tallies[name], capture, None, _loss(name, known))
    else:
        measure_running(
            module,
            list(module.parts.values()),
            list(captures.values()),
            list(tallies.values()),
            batches,
            known.loss_fn,
        )
    problem = not_shown(recipe)
    if not is_measured:
        problem = "signal to noise is not shown: weights hold no data to run on"
    if problem:
        notes.append(problem)
    lines = SourceLines(Anywhere.around(Path()), module.original, None)
    parts: list[Part] = []
    values: tuple[Value, ...] = ()
    for part in parts_in(module):
        tally = tallies[part.name]
        measured = tally.estimates(captures[part.name]) if is_measured else {}
        part = replace(part, capture=captures[part.name], estimates=measured)
        parts.append(part := part if part.choices else chosen(part, recipe, known.rules))
        inputs = _flat(part.name, captures, batches)
        sqnr = {} if problem else signal_to_noise(part, known.rules, inputs)
        found = Gathered(part, analyses[part.name], sqnr, tally.magnitudes(), lines)
        values += values_of(found, known.rules, _formats(recipe))
    notes += _far_apart(values)
    classes, crossings = class_graph(parts, known.rules)
    operations = dict.fromkeys(value.operation for value in values)
    verification = module.verification
    exact = known.exact if verification is None else verification.exact
    if verification is None and exact is not None:
        notes.append("the comparison with the original is that of the conversion")
    return Numerics(
        model=type(module.original).__name__,
        target=known.target,
        scales=module.scales,
        recipe=recipe,
        is_applied=module.recipe is not None,
        placement=module.plan.placement,
        carrier=module.plan.carrier,
        batches=len(batches) or int(is_measured),
        exact=exact,
        parameters=sum(parameter.numel() for parameter in module.original.parameters()),
        values=values,
        choices=tuple(
            replace(choice, value=value_name(part.name, choice.value))
            for part in parts
            for choice in part.choices
        ),
        classes=classes,
        crossings=crossings,
        rules={o: row(known.rules[o]) for o in operations if o in known.rules},
        formats=tuple(format.name for format in _formats(recipe)),
        findings=module.diagnostics,
        notes=tuple(notes),
        drift=known.drift,
        versions=dict(module.plan.versions),
        checked=Judge(known.settings, known.rules, lines).both(
            module,
            recipe,
            tuple(parts),
            [analyses[part.name] for part in parts],
            [tallies[part.name] if is_measured else None for part in parts],
        ),
    )


def _far_apart(values: tuple[Value, ...]) -> list[str]:
    """A note on values whose predicted and measured RMS differ by more than ``FAR`` octaves."""
    sides = [(v.name, v.side(direction)) for v in values for direction in DIRECTIONS]
    far = dict.fromkeys(n for n, side in sides if far_apart(side.predicted, side.measured))
    if not far:
        return []
    shown = ", ".join(list(far)[:4]) + (", …" if len(far) > 4 else "")
    return [
        f"analysis and measurement differ by more than {FAR:g} octaves in {len(far):,} of "
        f"{len(values):,} values: {shown}"
    ]


def _capture(part: UnitScaledModule) -> Capture:
    """The capture around the present weights; the original one where these are codes."""
    return part.capture if part.is_inference or _is_empty(part) else true_capture(part)


def _is_empty(module: UnitScaledModule) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _loss(part: str, known: ReportInputs) -> LossFunction | None:
    """The loss of the whole model; an island has none, but a unit gradient at its outputs."""
    return None if path_of(part) else known.loss_fn


def _flat(part: str, captures: Mapping[str, Capture], batches: tuple[Any, ...]) -> list[Any]:
    """The flat inputs for the measurement of noise: the first batch, else the example.

    An island uses its own example.
    """
    if not batches or path_of(part):
        return list(captures[part].example)
    return flat_calls(captures, part, [as_inputs(captures[part].model, batches[0])])[0]


def _formats(recipe: Recipe) -> tuple[Format, ...]:
    own = [recipe.forward.name, recipe.backward.name]
    names = dict.fromkeys([format.name for format in JUDGED] + own)
    return tuple(FORMATS[name] for name in names)
