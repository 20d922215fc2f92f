"""A rule's law applied to one node: the factors of its operands, numbers and result.

Pure functions of a rule, a node and its operands' scales. All scales are integers, log2. The
planner chooses scales by these functions, and the rewriter emits the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from unitify.rulebook.expressions import Monomial
from unitify.rulebook.rule_table import Law, Rule
from unitify.rulebook.schema import named_arguments, nodes_of

Exponent = Callable[[fx.Node], int]


@dataclass(frozen=True)
class Factors:
    """f(x…) = 2^output · f̂(2^operands[i] · x̂i …), numeric arguments times 2^numbers[name].

    ``operands``: log2 factor by (argument name, index in that argument's list of nodes).
    ``true_gradient``: the backward pass needs the result's gradient at true scale, too.
    """

    output: int
    operands: Mapping[tuple[str, int], int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    restored: bool = False
    true_gradient: bool = False


def is_scalable(node: Any) -> bool:
    """Is the node's value a real floating-point tensor, which can carry a scale?"""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def is_number(node: Any) -> bool:
    """Is the value one number, as a loss is: a scalable tensor without dimensions?"""
    return is_scalable(node) and not node.meta["val"].dim()


def holds_tensors(node: fx.Node) -> bool:
    """Is the node's value a tuple or list with a floating-point tensor in it?"""
    value = node.meta.get("val")
    return isinstance(value, list | tuple) and any(
        isinstance(v, torch.Tensor) and v.is_floating_point() for v in value
    )


def takes_apart(node: fx.Node) -> bool:
    """Does the node pick one result of several?"""
    source = node.args[0] if node.args else None
    return isinstance(source, fx.Node) and holds_tensors(source)


def factors(rule: Rule | None, node: fx.Node, scale: Exponent, chosen: int = 0) -> Factors:
    """The factors for ``node`` when its operands arrive at 2^``scale``.

    ``chosen``: log2 of the result's own scale, which aligning laws need.
    """
    arguments = named_arguments(node)
    law = rule.law if rule is not None else None
    found = None
    if law is not None and _holds(law, node, arguments):
        found = _by_law(law, arguments, scale, chosen)
    if found is None:
        found = restoring(arguments, scale)
    # The backward pass of an operation without a row may be anything. A complex operand has no
    # scale, so its gradient must be true.
    if rule is None or rule.true_gradient or _takes_complex(arguments):
        found = replace(found, true_gradient=True)
    return found


def restoring(arguments: Mapping[str, Any], scale: Exponent) -> Factors:
    """Factors that bring every operand back to true scale: right for every operation."""
    operands = {
        (name, index): scale(operand)
        for name, argument in arguments.items()
        for index, operand in enumerate(nodes_of(argument))
        if is_scalable(operand)
    }
    return Factors(0, operands, restored=True)


def is_complex(node: Any) -> bool:
    """Is the node's value a complex tensor, which has a gradient but no scale?"""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.is_complex()


def _takes_complex(arguments: Mapping[str, Any]) -> bool:
    return any(is_complex(n) for argument in arguments.values() for n in nodes_of(argument))


def _holds(law: Law, node: fx.Node, arguments: Mapping[str, Any]) -> bool:
    if not (is_scalable(node) or holds_tensors(node)):
        return False
    return all(
        arguments.get(name) in values or str(arguments.get(name)) in values
        for name, values in law.only.items()
    )


def _by_law(law: Law, arguments: Mapping[str, Any], scale: Exponent, chosen: int) -> Factors | None:
    """The law's factors, or None where they are not powers of two that can be inserted."""
    delivered: dict[str, int] = {"out": chosen}
    for name, argument in arguments.items():
        nodes = [n for n in nodes_of(argument) if is_scalable(n)]
        if nodes:
            # A list of tensors counts as their product, as in einsum.
            delivered[name] = sum(scale(n) for n in nodes)
    operands: dict[tuple[str, int], int] = {}
    output = _exponent(law.output, delivered, arguments)
    parity = _exponent(law.even, delivered, arguments)
    if output is None or (parity is not None and parity % 2):
        # A root of an odd power of two: the first operand takes one factor of two back.
        first = next(name for name in law.even or law.output if name in delivered)
        operands[first, 0] = 1
        delivered[first] -= 1
        output = _exponent(law.output, delivered, arguments)
    if output is None:
        return None
    numbers: dict[str, int] = {}
    for name, monomial in law.factors.items():
        argument = arguments.get(name)
        if isinstance(argument, list | tuple):
            listed = _listed(name, argument, monomial, delivered, arguments, scale)
            if listed is None:
                return None
            operands.update(listed)
            continue
        exponent = _exponent(monomial, delivered, arguments)
        if exponent is None:
            return None
        if is_scalable(argument):
            operands[name, 0] = exponent
        elif isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.Tensor):
            if exponent:
                return None
        elif exponent and (argument is not None or name in law.defaults):
            numbers[name] = exponent
    return Factors(output, operands, numbers)


def _listed(
    name: str,
    argument: list[Any] | tuple[Any, ...],
    monomial: Monomial,
    delivered: Mapping[str, int],
    arguments: Mapping[str, Any],
    scale: Exponent,
) -> dict[tuple[str, int], int] | None:
    found: dict[tuple[str, int], int] = {}
    for index, operand in enumerate(nodes_of(argument)):
        own = {**delivered, name: scale(operand) if is_scalable(operand) else 0}
        exponent = _exponent(monomial, own, arguments)
        if exponent is None or (exponent and not is_scalable(operand)):
            return None
        found[name, index] = exponent
    return found


def _exponent(
    monomial: Monomial, delivered: Mapping[str, int], arguments: Mapping[str, Any]
) -> int | None:
    """log2 of a monomial; operands without a scale (numbers, masks, None) count as one."""
    total = Fraction(0)
    for name, power in monomial.items():
        exponent = delivered.get(name, 0)
        if exponent == 0:
            continue
        if isinstance(power, str):
            number = arguments.get(power)
            if not isinstance(number, int | float):
                return None
            total += Fraction(number) * exponent
        else:
            total += power * exponent
    return int(total) if total.denominator == 1 else None
