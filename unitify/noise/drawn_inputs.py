"""Inputs drawn at random, in place of data.

A floating input is normal, of the example's mean and RMS; an integer that picks rows of a table is
drawn among them (``below`` in the rule's row); a mask, a size or a flag stays the example's. What a
trained operation states of a value (``analysis.stated``) counts more than what random inputs make
of it: a run on drawn inputs moves the value to these moments, channel by channel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.formulas import formula_values
from unitify.analysis.sampled import observed
from unitify.analysis.stated import stated_moments
from unitify.capture.whole import Capture
from unitify.noise.measured import Correction
from unitify.operations.dimensions import evaluate
from unitify.operations.extremes import holds_mask
from unitify.operations.operation import Operation
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, operation_name

#: How often inputs are drawn.
DRAWS = 2


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


def toward_stated(capture: Capture, rules: RuleTable) -> Correction:
    """Moves a value whose moments are stated to these, where each has elements enough to tell."""
    stated = {node: moment for node, (_, moment) in stated_moments(capture, rules).items()}

    def correct(node: fx.Node, value: Tensor) -> Tensor:
        if node not in stated:
            return value
        told = stated[node]
        pooled = [d for d in range(value.dim()) if told.mean.shape[d] == 1]
        mean = value.mean(pooled, keepdim=True)
        std = value.std(pooled, keepdim=True, correction=0)
        unit = (value - mean) / std.clamp_min(torch.finfo(value.dtype).tiny)
        return (unit * told.var.sqrt() + told.mean).to(value.dtype)

    return correct
