"""Schemes, and what the published one constrains, for a terminal: tables that ``rich`` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from unitify.report.constraints import PLANNED, RULES, Constraints
from unitify.report.schemes import SchemeShares
from unitify.report.shares import Shares

#: Octaves below which two factors are one; how many operations are shown.
APART, MOST = 0.05, 8


def scheme_table(rows: Iterable[SchemeShares]) -> Table:
    """Schemes side by side: percent at unit RMS and in the range of formats."""
    table = Table(
        title="schemes, predicted: percent of values / of gradients",
        title_justify="left",
        box=None,
    )
    table.add_column("scheme", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    for name in ("unit RMS", "octaves off", "FP16", "E4M3 / E5M2"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        sides = row.forward, row.backward
        percents = [
            " / ".join(_percent(s, what) for s in sides) for what in ("unit", "fp16", "fp8")
        ]
        octaves = " / ".join(map(_octaves, sides))
        table.add_row(row.scheme, row.weights, percents[0], octaves, *percents[1:])
    return table


def constraint_costs(found: Constraints) -> str:
    """How many operations are constrained, and how far from unit RMS that leaves gradients."""
    costs = ", ".join(
        f"{_octaves(found.shares(rule, 'backward'))} {rule}" for rule in (*RULES, PLANNED)
    )
    return (
        f"{len(found.constrained):,} of {len(found.operations):,} operations; gradients are off "
        f"unit RMS, in octaves: {costs}"
    )


def constraint_table(found: Constraints) -> Table | None:
    """The operations whose constraint costs their gradients most by the paper's own rule.

    None where none costs any.
    """
    rule = RULES[0]
    costly = [op for op in found.constrained if abs(op.off[rule]) >= APART]
    if not costly:
        return None
    table = Table(
        title="published constraint, log2: ideal factors, and the gradient that a joint one leaves",
        title_justify="left",
        box=None,
    )
    for name in ("value", "operation"):
        table.add_column(name)
    for name in ("result", "gradient", *RULES):
        table.add_column(name, justify="right")
    for op in sorted(costly, key=lambda op: -abs(op.off[rule]))[:MOST]:
        gradient = max((math.log2(op.backward[name]) for name in op.joined), key=abs)
        logs = [math.log2(op.forward), gradient, *(op.off[rule] for rule in RULES)]
        table.add_row(Text(op.value), Text(op.operation), *(f"{log:+.2f}" for log in logs))
    return table


def _percent(found: Shares, what: str) -> str:
    return f"{100 * found.share(what):.0f}" if found.total else "–"


def _octaves(found: Shares) -> str:
    return "–" if found.octaves is None else f"{found.octaves:.2f}"
