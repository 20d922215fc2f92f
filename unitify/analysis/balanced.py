"""Gradients that sum to zero over some dimensions, and gradients that are zero for that reason.

Some functions do not change when all elements along some dimensions move together (a softmax, a
norm in train mode, an attention in its keys). Their gradient sums to zero over these dimensions.
So the gradient of a bias that is added along them is zero, and a run measures only rounding there.
A row's ``balanced`` names such operands. For other operations the property is tested on one draw
of their operands: for random numbers it holds always or never.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from unitify.analysis.formulas import over_dimensions
from unitify.analysis.sampled import draw
from unitify.analysis.small_image import SmallImage
from unitify.rulebook.operation import Operation
from unitify.rulebook.refusal import refusals
from unitify.rulebook.rule_table import Rule

#: Dimensions, counted from the end, over which a gradient sums to zero, jointly. An empty set: the
#: gradient itself is zero. None: unknown.
Balance = frozenset[int] | None
#: A sum this small relative to its terms is zero: float64 rounds at 1e-16, and sums of up to
#: ``_LARGE`` terms add a few digits.
_ROUNDING = 1e-9
#: Larger operands and results are not tested, to bound the time.
_LARGE = 2**16


def balance_by_rule(operation: Operation, rule: Rule | None, name: str) -> Balance:
    """The balance that the row gives for the gradient of one operand."""
    said = rule.balanced.get(name) if rule is not None else None
    if rule is None or said is None:
        return None
    if not isinstance(said, str):
        return frozenset(said)
    _, _, flag = said.partition(" if ")
    if flag and not operation.number(flag):
        return None
    return frozenset(over_dimensions(operation, rule).usual)


def passed_on(
    operation: Operation, name: str, operands: Mapping[str, Any], balance: frozenset[int]
) -> Balance:
    """The balance of the gradient of one operand, for this balance of the result's gradient.

    ``operands``: moments of all operands, by name.
    """
    if not isinstance(operation.operands.get(name), fx.Node) or len(operation.result_shapes) > 1:
        return None
    shape = operation.shape(name)
    sizes = [shape] if isinstance(operation, SmallImage) else [shape, *operation.result_shapes]
    if max(math.prod(size) for size in sizes) > _LARGE:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = draw(operation, operands, generator, torch.float64)
    leaf = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True)
    with torch.enable_grad():
        value = operation({**drawn, name: leaf})
        upstream = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if balance:
            upstream = upstream - upstream.mean(sorted(balance), keepdim=True)
        with refusals():
            (gradient,) = torch.autograd.grad(value, leaf, upstream, allow_unused=True)
    if gradient is None:
        return frozenset()
    size = float(upstream.square().sum().sqrt())
    found = frozenset(range(-len(shape), 0))
    for dimension in (None, *found):
        fewer = found - {dimension}
        summed = gradient.sum(sorted(fewer)) if fewer else gradient
        if float(summed.abs().max()) <= _ROUNDING * size:
            found = fewer
        elif dimension is None:
            return None
    return found


def together(first: Balance, second: Balance) -> Balance:
    """The balance of the sum of two gradients."""
    return None if first is None or second is None else first | second
