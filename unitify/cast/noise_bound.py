"""Which products stay in BF16 so that the predicted noise of every output keeps within a bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from unitify.capture.whole import Capture
from unitify.diagnostics import BoundMissed, Diagnostic
from unitify.formats.signal_to_noise import relative_error
from unitify.formats.table import BF16, FORMATS
from unitify.noise.budget import Budget, budget
from unitify.noise.budget import choose as leave_out
from unitify.noise.moments import Place
from unitify.noise.operand_casts import operand_casts
from unitify.noise.predict import predict_noise
from unitify.noise.probed import probed_budget
from unitify.operations.products import product_operands
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import operation_name
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice


def within_bound(
    choices: Iterable[Choice],
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    min_sqnr: float,
    batches: Iterable[list[Any]] | None = None,
) -> tuple[tuple[Choice, ...], tuple[Diagnostic, ...]]:
    """``choices`` with the fewest FLOPs left in BF16 so that each output keeps ``min_sqnr`` dB.

    Every product is told how much noise its casts add. A finding where no choice is enough.
    ``batches``: flat inputs on which noise is followed, drawn ones where None. Where weights hold
    no data, the moments of the values tell.
    """
    choices = tuple(choices)
    cast = {c.value: c for c in choices if c.is_product and c.is_cast}
    if not cast:
        return choices, ()
    held = exponents(cast.values(), capture, rules)
    formats = {n: c.forward for n, c in cast.items()}
    means = {n: c.mean for n, c in cast.items() if c.mean}
    casts = operand_casts(capture, plan, rules, formats, held, means)
    if not capture.holds_weights:
        shares = budget(predict_noise(capture, rules, casts))
    else:
        shares = probed_budget(capture, rules, casts, batches)
    flops = {name: choice.flops for name, choice in cast.items()}
    forward = FORMATS[next(iter(cast.values())).forward]
    remaining = relative_error(BF16, 1.0) / relative_error(forward, 1.0)
    left = set(leave_out(shares, flops, min_sqnr, remaining))
    noise = {n: max(each.get(n, 0.0) for each in shares.outputs.values()) for n in cast}
    found = []
    for choice in choices:
        if choice.value in left:
            reason = f"in BF16 for its noise; an output is to keep {min_sqnr:g} dB"
            choice = replace(
                choice, forward="bf16", backward="bf16", exponents=(), mean=(), reason=reason
            )
        found.append(replace(choice, noise=noise.get(choice.value, 0.0)))
    return tuple(found), tuple(_missed(shares, left, remaining, min_sqnr))


def exponents(choices: Iterable[Choice], capture: Capture, rules: RuleTable) -> dict[Place, int]:
    """Headroom of every operand by its place, as ``operand_casts`` takes it."""
    nodes = {node.name: node for node in capture.graph.nodes}
    found: dict[Place, int] = {}
    for choice in choices:
        node = nodes[choice.value]
        operands = product_operands(rules[operation_name(node)], node)
        places = [(node.name, name, index) for name, index, _ in operands]
        found.update(zip(places, choice.exponents, strict=False))
    return found


def _missed(
    shares: Budget, left: set[str], remaining: float, min_sqnr: float
) -> Iterable[Diagnostic]:
    for output, sqnr in shares.sqnr(left, remaining).items():
        if sqnr < min_sqnr:
            yield BoundMissed(where=output, asked=min_sqnr, predicted=round(sqnr, 1))
