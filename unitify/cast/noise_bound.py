"""Which products stay in BF16 so that the noise of every output keeps within a bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from unitify.diagnostics import BoundMissed, BoundUnknown, Diagnostic
from unitify.formats.signal_to_noise import relative_error
from unitify.formats.table import BF16, FORMATS
from unitify.noise.budget import Budget
from unitify.noise.budget import choose as leave_out
from unitify.noise.operand_casts import operand_casts
from unitify.noise.probed import probed_budget
from unitify.part import Part
from unitify.rulebook.rule_table import RuleTable


def within_bound(
    part: Part,
    rules: RuleTable,
    min_sqnr: float,
    batches: Iterable[list[Any]] | None = None,
) -> tuple[Part, tuple[Diagnostic, ...]]:
    """``part`` with the fewest FLOPs left in BF16 so that each output keeps ``min_sqnr`` dB.

    Every product is told how much noise its casts add. A finding where no choice is enough.
    ``batches``: flat inputs on which noise is followed, drawn ones where None. Where weights hold
    no data there is nothing to run: a finding says that nobody looked.
    """
    capture = part.capture
    cast = {c.value: c for c in part.choices if c.is_product and c.is_cast}
    if not cast:
        return part, ()
    if not capture.holds_weights:
        return part, (BoundUnknown(where=type(capture.model).__name__, asked=min_sqnr),)
    shares = probed_budget(capture, rules, operand_casts(part, rules), batches)
    flops = {name: choice.flops for name, choice in cast.items()}
    forward = FORMATS[next(iter(cast.values())).forward]
    remaining = relative_error(BF16, 1.0) / relative_error(forward, 1.0)
    left = set(leave_out(shares, flops, min_sqnr, remaining))
    noise = {n: max(each.get(n, 0.0) for each in shares.outputs.values()) for n in cast}
    found = []
    for choice in part.choices:
        if choice.value in left:
            reason = f"in BF16 for its noise; an output is to keep {min_sqnr:g} dB"
            choice = replace(choice.in_format(BF16.name), reason=reason)
        found.append(replace(choice, noise=noise.get(choice.value, 0.0)))
    return replace(part, choices=tuple(found)), tuple(_missed(shares, left, remaining, min_sqnr))


def _missed(
    shares: Budget, left: set[str], remaining: float, min_sqnr: float
) -> Iterable[Diagnostic]:
    for output, sqnr in shares.sqnr(left, remaining).items():
        if sqnr < min_sqnr:
            yield BoundMissed(where=output, asked=min_sqnr, predicted=round(sqnr, 1))
