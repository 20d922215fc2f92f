"""Gradients that sum to zero over some dimensions, and what that leaves of others.

A function that does not change when all elements along some dimensions move together (a softmax, a
norm in train mode, an attention in its keys) hands back a gradient whose sum over these dimensions
is zero. So is the gradient of a bias that is added along them: what is measured there is rounding.
A row's ``balanced`` names such operands. What other operations make of the property is tried on one
draw of their operands: it holds for numbers in general position or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from unitify.analysis.formulas import over_dimensions
from unitify.analysis.sampled import draw
from unitify.rulebook.operation import Operation
from unitify.rulebook.refusal import refusals
from unitify.rulebook.rule_table import Rule

#: Dimensions, counted from the end, over which a gradient sums to zero, jointly. None of them: the
#: gradient itself is zero. None: nothing is known.
Balance = frozenset[int] | None
#: Sums that are this small beside what is summed are zero, in double precision.
_ROUNDING = 1e-9
#: Beyond this many elements nothing is tried.
_LARGE = 2**16


def balance_by_rule(operation: Operation, rule: Rule | None, name: str) -> Balance:
    """What the row says of the gradient of one operand, whatever the result's is."""
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
    """What is known of the gradient of one operand if the result's has this balance.

    ``operands``: moments of all of them, by name.
    """
    if not isinstance(operation.operands.get(name), fx.Node):
        return None
    shape, (result, *more) = operation.shape(name), operation.result_shapes
    if more or max(math.prod(shape), math.prod(result)) > _LARGE:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = draw(operation, operands, generator, torch.float64)
    leaf = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True)
    upstream = torch.randn(result, generator=generator, dtype=torch.float64)
    if balance:
        upstream = upstream - upstream.mean(sorted(balance), keepdim=True)
    with torch.enable_grad():
        value = operation({**drawn, name: leaf})
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
