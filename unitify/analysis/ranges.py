"""The range of an operation's result, from the ranges of its operands.

``quadrature`` finds the range of a function of one operand. This file finds that of operations
that only move or sum elements of one operand, and of those whose extremes lie at the corners of
their operands' ranges (a row's ``corners``), such as sums and products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

from unitify.analysis.formulas import formula_values
from unitify.analysis.moments import Moment
from unitify.rulebook.dimensions import evaluate
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule

Range = tuple[float, float]
EVERYTHING: Range = (-math.inf, math.inf)


def range_of(operation: Operation, rule: Rule, operands: Mapping[str, Any]) -> Range:
    """Bounds on every element of the only result; infinite where unknown."""
    if rule.corners:
        held = {n: m for n in rule.corners if isinstance(m := operands.get(n), Moment)}
        return _at_corners(operation, rule, held) if len(held) == len(rule.corners) else EVERYTHING
    if len(rule.linear) == 1 and "out" in rule.terms and set(operands) == set(rule.linear):
        (moment,) = operands.values()
        if isinstance(moment, Moment) and not _is_unknown(moment):
            values = formula_values(operation, rule, {})
            terms = evaluate(rule.terms["out"], values) * evaluate(rule.coefficient, values)
            low, high = moment.low * terms, moment.high * terms
            # With less than one term an element, some elements are zero.
            return (low, high) if terms >= 1 else (min(moment.low, 0.0), max(moment.high, 0.0))
    return EVERYTHING


def _is_unknown(moment: Moment) -> bool:
    return math.isinf(moment.low) and math.isinf(moment.high)


def _at_corners(operation: Operation, rule: Rule, operands: Mapping[str, Moment]) -> Range:
    if all(_is_unknown(m) for m in operands.values()):
        return EVERYTHING
    powers = rule.law.output if rule.law is not None else {}
    for name, moment in operands.items():
        power = powers.get(name, 0)
        if not isinstance(power, str) and power < 0 and moment.low <= 0 <= moment.high:
            return EVERYTHING
    corners = itertools.product(*((m.low, m.high) for m in operands.values()))
    found = []
    for corner in corners:
        values = {
            name: torch.tensor(v, dtype=torch.float64) if name in operation.operands else v
            for name, v in zip(operands, corner, strict=True)
        }
        found.append(float(operation(values)))
    if any(math.isnan(v) for v in found):
        return EVERYTHING
    return min(found), max(found)
