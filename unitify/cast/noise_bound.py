"""Which contractions stay in BF16, so that every output keeps its signal to noise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from unitify.diagnostics import BoundMissed, BoundUnknown, Diagnostic
from unitify.formats.signal_to_noise import relative_error
from unitify.formats.table import BF16, FORMATS
from unitify.noise.mixed_precision import Sensitivity, leave_out
from unitify.noise.operand_casts import operand_casts
from unitify.noise.sensitivity import sensitivity
from unitify.part import Part
from unitify.rulebook.rule_table import RuleTable


def within_bound(
    part: Part,
    rules: RuleTable,
    min_sqnr: float,
    batches: Iterable[list[Any]] | None = None,
) -> tuple[Part, tuple[Diagnostic, ...]]:
    """``part`` with the fewest FLOPs left in BF16, so that each output keeps ``min_sqnr`` dB.

    ``Choice.noise`` says how much noise each contraction adds. ``batches``: flat inputs to run on;
    the example where None. A finding says where no choice is enough (U405), and where no
    run shows the noise (U406).
    """
    capture = part.capture
    cast = {c.value: c for c in part.choices if c.is_contraction and c.is_cast}
    if not cast:
        return part, ()
    where = type(capture.model).__name__
    if not capture.holds_weights:
        reason = "the weights hold no data to run on"
        return part, (BoundUnknown(where=where, asked=min_sqnr, reason=reason),)
    shares = sensitivity(capture, rules, operand_casts(part, rules), batches)
    ratios = [ratio for each in shares.outputs.values() for ratio in each.values()]
    if not ratios or not all(map(math.isfinite, ratios)):
        reason = "every output is zero, or one is not a number"
        return part, (BoundUnknown(where=where, asked=min_sqnr, reason=reason),)
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
    shares: Sensitivity, left: set[str], remaining: float, min_sqnr: float
) -> Iterable[Diagnostic]:
    for output, sqnr in shares.sqnr(left, remaining).items():
        if sqnr < min_sqnr:
            yield BoundMissed(where=output, asked=min_sqnr, predicted=round(sqnr, 1))
