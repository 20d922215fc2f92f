"""Inputs drawn at random, in place of data.

A floating input is normal, of the example's mean and RMS; an integer that picks rows of a table is
drawn among them (``below`` in the rule's row); a mask, a size or a flag stays the example's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.formulas import formula_values
from unitify.analysis.sampled import observed
from unitify.capture.whole import Capture
from unitify.operations.dimensions import evaluate
from unitify.operations.extremes import holds_mask
from unitify.operations.operation import Operation
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, operation_name


def drawn_inputs(capture: Capture, rules: RuleTable, seed: int) -> list[Any]:
    """Flat inputs of one call."""
    generator = torch.Generator().manual_seed(seed)
    placeholders = [n for n in capture.graph.nodes if n.op == "placeholder"]
    found = []
    for node, value in zip(placeholders, capture.example, strict=True):
        bound = _bound(node, rules) if isinstance(value, Tensor) else None
        if bound is not None:
            found.append(torch.randint(bound, value.shape, generator=generator).to(value))
        elif not isinstance(value, Tensor) or not value.is_floating_point() or holds_mask(value):
            found.append(value)
        else:
            like = observed(value).uniform()
            noise = torch.randn(value.shape, generator=generator)
            found.append((float(like.mean) + math.sqrt(float(like.var)) * noise).to(value))
    return found


def _bound(node: fx.Node, rules: RuleTable) -> int | None:
    """The least number of rows that an integer is an index into, through what only moves it."""
    bounds: list[int] = []
    reached = [node]
    for current in reached:
        for user in current.users:
            rule = rules.get(operation_name(user)) if user.op == "call_function" else None
            if rule is None:
                continue
            if rule.moves and user not in reached:
                reached.append(user)
            for name, rows in rule.below.items():
                if named_arguments(user)[name] is current:
                    values = formula_values(Operation(user, {}), rule, {})
                    bounds.append(int(evaluate(rows, values)))
    return min(bounds, default=None)
