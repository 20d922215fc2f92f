"""What a narrow format has to hold beside the RMS of a run: two corrections of estimates.

The gradient of a bias is a sum over the elements to which it is added. In front of a batch norm in
train mode that sum is zero but for rounding, and once the norm is frozen it is as large as any. A
scale from what rounding leaves would then overflow.

A small number that is added to a value or limits it (the eps of a norm) is all that is left of it
where its operand is zero. A scale from the RMS would make it vanish, and a division follow by zero.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import fx

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.rulebook.dimensions import is_floating, shape_of
from unitify.rulebook.laws import factors, holds_tensors, is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

#: The least part of a sum without cancellation for which a scale is chosen. FP16 has 16 octaves
#: above one: 7 for such a sum, and 9 for terms that all point one way. It has 14 below one.
LEAST = 2.0**-7
#: A number is kept that is at most 2^KEPT times smaller than the scale: FP16 holds it within an
#: eighth. The RMS is then at most 2^ROOM times the scale: 2^8 times as large elements still fit.
KEPT, ROOM = 22, 8


def narrowed(capture: Capture, estimates: Estimates, rules: RuleTable) -> Estimates:
    """``estimates`` with both corrections, by which scales of a narrow format are chosen."""
    estimates = _uncanceled(capture, estimates, rules)
    found = dict(estimates)
    for node in capture.graph.nodes:
        rms = estimates.get(node.name, Rms()).forward
        number = _least_number(node, rules) if rms and math.isfinite(rms) else 0.0
        if rms and number:
            most = math.ldexp(number, KEPT)
            if rms / 2**ROOM <= most < rms:
                found[node.name] = replace(found[node.name], forward=most)
    return found


def _least_number(node: fx.Node, rules: RuleTable) -> float:
    """The least number that the operation adds to its result, or limits it by; 0 for none.

    It is one that the law divides by the scale of the result.
    """
    rule = rules.get(operation_name(node)) if node.op == "call_function" else None
    if rule is None or rule.law is None or not is_scalable(node):
        return 0.0
    made = factors(rule, node, lambda _: 1, 1)
    arguments = {**rule.law.defaults, **named_arguments(node)}
    held = (arguments.get(n) for n, power in made.numbers.items() if power == -made.output)
    numbers = [abs(n) for n in held if isinstance(n, int | float) and n]
    return min(numbers, default=0.0)


def _uncanceled(capture: Capture, estimates: Estimates, rules: RuleTable) -> Estimates:
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
