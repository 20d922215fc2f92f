"""The gradients of addends, whose sums cancel in one mode and not in another.

The gradient of a bias is a sum over the elements to which it is added. In front of a batch norm in
train mode that sum is zero but for rounding, and once the norm is frozen it is as large as any. A
scale from what rounding leaves would then overflow a narrow format.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.rulebook.dimensions import is_floating, shape_of
from unitify.rulebook.laws import holds_tensors
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

#: The least part of a sum without cancellation for which a scale is chosen. FP16 has 16 octaves
#: above one: 7 for such a sum, and 9 for terms that all point one way. It has 14 below one.
LEAST = 2.0**-7


def uncanceled(capture: Capture, estimates: Estimates, rules: RuleTable) -> Estimates:
    """``estimates``, with at least ``LEAST`` of the RMS that a gradient has where nothing cancels.

    n independent terms of RMS t sum to √n·t. A gradient that comes from such gradients alone grows
    with them.
    """
    growth: dict[fx.Node, float] = {}

    def rms(node: fx.Node) -> float:
        found = estimates.get(node.name, Rms()).backward or 0.0
        return found if math.isfinite(found) else 0.0

    for node in reversed(capture.graph.nodes):
        users = [n for n in node.users if rms(n) or n.op == "output" or holds_tensors(n)]
        if not (users and rms(node) and is_floating(node.meta.get("val"))):
            continue
        whole = max(math.sqrt(_terms(user, node, rules)) * rms(user) for user in users)
        grown = max(LEAST * whole / rms(node), min(growth.get(user, 1.0) for user in users))
        if grown > 1:
            growth[node] = grown
    raised = {n.name: replace(estimates[n.name], backward=g * rms(n)) for n, g in growth.items()}
    return {**estimates, **raised}


def _terms(operation: fx.Node, operand: fx.Node, rules: RuleTable) -> float:
    """How many elements of the result each element of ``operand`` is added to; 0 for none."""
    rule = rules.get(operation_name(operation)) if operation.op == "call_function" else None
    if rule is None or not is_floating(operation.meta.get("val")):
        return 0.0
    arguments = named_arguments(operation)
    if rule.weighs and arguments.get(rule.weighs, 1) != 1:
        return 0.0
    roles = {rule.parameters.get(name) for name, held in arguments.items() if held is operand}
    size = max(math.prod(shape_of(operand.meta["val"])), 1)
    return math.prod(shape_of(operation.meta["val"])) / size if "bias" in roles else 0.0
