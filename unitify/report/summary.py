"""``Numerics`` for a terminal: shares at unit scale, losses of formats, restored and cast values.

Takes ``Numerics``; gives an object that ``rich`` prints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from unitify.report.numerics import DIRECTIONS, GRAPHS, Numerics, Value
from unitify.report.report import apart

#: The number of worst values that are shown, and the least lost share of their elements.
WORST, LEAST = 8, 1e-4
#: The most characters of a name in a table.
NAME = 56


@dataclass(frozen=True)
class Lost:
    """The shares that a format loses of one value or gradient, in one of the graphs."""

    value: Value
    direction: str
    format: str
    graph: str
    flushed: float
    saturated: float

    @property
    def worst(self) -> float:
        """The share that becomes zero or saturates."""
        return max(self.flushed, self.saturated)


def losses(numerics: Numerics, graph: str) -> list[Lost]:
    """Losses of all values and gradients in the formats of the recipe, worst first.

    Left out are masks, gradients of inputs that are not cast, and what is rounding alone.
    """
    formats = numerics.recipe.forward.name, numerics.recipe.backward.name
    found = [
        Lost(value, direction, format, graph, held.flushed, held.saturated)
        for value in numerics.values
        if value.kind != "mask"
        for direction, format in zip(DIRECTIONS, formats, strict=True)
        if not (direction == "backward" and _is_left_out(value))
        if (held := value.side(direction).losses.get(graph, {}).get(format)) is not None
    ]
    return sorted(found, key=lambda lost: -lost.worst)


def _is_left_out(value: Value) -> bool:
    """Is no gradient of ``value`` lost, whatever the format?"""
    side = value.backward
    return side.is_rounding or (value.kind == "input" and not side.cast)


def summary(numerics: Numerics) -> Group:
    """Numbers of the whole model, then the values that lose most, named as ``check`` names them."""
    table = Table(
        title=f"unitify · {numerics.model}", title_justify="left", show_header=False, box=None
    )
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("figure", overflow="fold")
    for what, figure in facts(numerics):
        table.add_row(what, Text(figure))
    return Group(table, Text(), *_worst(numerics))


def facts(numerics: Numerics) -> Iterator[tuple[str, str]]:
    """The numbers of the whole model, as pairs of texts."""
    yield "target", numerics.target or "a module"
    known = (
        f"measured on {numerics.batches} batch{'' if numerics.batches == 1 else 'es'}"
        if numerics.batches
        else "predicted, without data"
    )
    yield "values", f"{len(numerics.values):,} ({known}); {numerics.parameters:,} parameters"
    yield "scales", numerics.scales
    for direction, name in zip(DIRECTIONS, ("values", "gradients"), strict=True):
        before, total = numerics.unit_share(direction, "original")
        after, _ = numerics.unit_share(direction, "transformed")
        counted = f"of {total:,}{apart(numerics.true_weights(direction))}"
        yield (
            f"{name} at unit RMS",
            (
                f"{_percent(before, total)} before, {_percent(after, total)} after ({counted})"
                if total
                else "none"
            ),
        )
    yield "exact before casts", {None: "not verified", True: "yes", False: "NO"}[numerics.exact]
    cast = sum(choice.is_cast for choice in numerics.choices)
    applied = "" if numerics.is_applied else " (not applied: what it would do)"
    yield "recipe", f"{numerics.recipe.name}{applied}: {cast:,} operations cast"
    yield "lowest signal to noise", _lowest(numerics)
    found = [len(checked.outcome.findings) for checked in numerics.checked.values()]
    if found:
        yield "found by check", f"{found[0]:,} before, {found[1]:,} after"
    yield "run at true scale", _restored(numerics)
    for note in numerics.notes:
        yield "note", note
    for finding in numerics.findings:
        yield "left out", f"{finding.code} {finding.message}"


def lowest_ratio(numerics: Numerics, graph: str) -> float | None:
    """The lowest signal-to-noise ratio of any value of a graph in decibels; None without noise."""
    found = (value.sqnr.get(graph) for value in numerics.values)
    return min((ratio for ratio in found if ratio is not None), default=None)


def _lowest(numerics: Numerics) -> str:
    ratios = [lowest_ratio(numerics, graph) for graph in GRAPHS]
    before, after = ("none" if ratio is None else f"{ratio:.1f} dB" for ratio in ratios)
    return f"{before} before, {after} after"


def _restored(numerics: Numerics) -> str:
    counts = Counter(v.operation for v in numerics.values if v.restored == "no rule")
    by_law = sum(v.restored == "law" for v in numerics.values)
    unruled = ", ".join(f"{name} × {count}" for name, count in counts.most_common(4))
    return f"{by_law:,} by their law; without a rule: {unruled or 'none'}"


def _worst(numerics: Numerics) -> Iterator[Table | Text]:
    formats = numerics.recipe.forward.name, numerics.recipe.backward.name
    names = numerics.stable_names
    for graph in GRAPHS:
        found = [lost for lost in losses(numerics, graph)[:WORST] if lost.worst >= LEAST]
        table = Table(
            title=f"worst in {'/'.join(formats)}, {graph}", title_justify="left", box=None
        )
        table.add_column("value", no_wrap=True)
        table.add_column("direction")
        table.add_column("format")
        table.add_column("to zero", justify="right")
        table.add_column("saturated", justify="right")
        for lost in found:
            table.add_row(
                Text(_end(names.get(lost.value.name, lost.value.name))),
                lost.direction,
                lost.format,
                f"{100 * lost.flushed:.2f} %",
                f"{100 * lost.saturated:.2f} %",
            )
        yield table if found else Text(f"{table.title}: nothing above {100 * LEAST:g} %")


def _end(name: str) -> str:
    """A name that is cut at its start: its end is what distinguishes it."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
