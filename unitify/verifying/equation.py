"""The one equation of an operation, derived from its rule alone, for validation.

This file shares no code with ``laws`` and ``rewrite``, so that it does not repeat their mistakes.
Takes a node of the original graph, its rule and the plan's scales; gives the factors in front of
its operands, the units of its result and its numeric arguments. All scales and factors are log2
integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rulebook.dimensions import evaluate_default
from unitify.rulebook.expressions import Monomial
from unitify.rulebook.rule_table import Law, Rule
from unitify.rulebook.schema import named_arguments, nodes_of

#: An operand of a call: the argument's name, and the index among the nodes in that argument.
Slot = tuple[str, int]


@dataclass(frozen=True)
class Equation:
    """f(x…) = 2^units · f̂(2^operands[i] · x̂i …).

    ``numbers``: numeric arguments by name, each as in the original and log2 of its factor.
    ``gradient``: log2 of the units in which the operation receives the gradient of its result.
    """

    units: int
    gradient: int
    operands: Mapping[Slot, int]
    numbers: Mapping[str, tuple[Any, int]]


def is_real(node: fx.Node) -> bool:
    """Does the node hold a tensor of real floating-point numbers?"""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def is_complex(node: fx.Node) -> bool:
    """Does the node hold a complex tensor? Its scale and its gradient's are always one."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def holds_several(node: fx.Node) -> bool:
    """Does the node hold a tuple or list with a floating-point tensor in it?"""
    value = node.meta.get("val")
    return isinstance(value, list | tuple) and any(
        isinstance(item, torch.Tensor) and item.is_floating_point() for item in value
    )


def equation(node: fx.Node, rule: Rule | None, plan: ScalePlan) -> Equation:
    """The equation of one call: by its rule's law, or with every operand restored to true scale.

    On a wide carrier a gradient arrives in the inverse of the units of the result.
    """
    found, is_true = _forward(node, rule, plan.values)
    if is_true:
        return found
    own = plan.values.get(node.name, Scale()).exponents[1]
    return replace(found, gradient=-found.units if plan.carrier == "wide" else own)


def _forward(
    node: fx.Node, rule: Rule | None, scales: Mapping[str, Scale]
) -> tuple[Equation, bool]:
    """The equation without its gradient, and whether the gradient has to arrive true."""
    arguments = named_arguments(node)
    operands = {
        (name, index): operand
        for name, argument in arguments.items()
        for index, operand in enumerate(nodes_of(argument))
    }
    own = scales.get(node.name, Scale()).exponents[0]
    is_true = rule is None or rule.true_gradient or any(is_complex(n) for n in operands.values())
    forward = {
        slot: scales.get(operand.name, Scale()).exponents[0] if is_real(operand) else None
        for slot, operand in operands.items()
    }
    law = rule.law if rule is not None else None
    if law is not None and (is_real(node) or holds_several(node)) and _applies(law, arguments):
        found = _Reading(node, law, arguments, forward, own).equation()
        if found is not None:
            return found, is_true
    restored = {slot: scale for slot, scale in forward.items() if scale is not None}
    return Equation(0, 0, restored, {}), is_true


def _applies(law: Law, arguments: Mapping[str, Any]) -> bool:
    """Has every argument that limits the law one of the values that the law holds for?"""
    return all(
        any(arguments.get(name) == value or str(arguments.get(name)) == value for value in allowed)
        for name, allowed in law.only.items()
    )


class _Reading:
    """One law at one call."""

    def __init__(
        self,
        node: fx.Node,
        law: Law,
        arguments: Mapping[str, Any],
        forward: Mapping[Slot, int | None],
        own: int,
    ) -> None:
        self.node, self.law, self.arguments, self.forward = node, law, arguments, forward
        #: log2 of each name in a monomial: the scale of an operand, the product of the scales of a
        #: list of operands, the scale of the result.
        self.names: dict[str, int] = {"out": own}
        for (name, _), scale in forward.items():
            if scale is not None:
                self.names[name] = self.names.get(name, 0) + scale

    def equation(self) -> Equation | None:
        """None where a factor is no power of two, or would stand at an integer tensor."""
        operands = {slot: 0 for slot, scale in self.forward.items() if scale is not None}
        halved = self._odd_operand()
        if halved is not None:
            operands[halved, 0] = 1
            self.names[halved] -= 1
        units = self._log2(self.law.output)
        if units is None:
            return None
        numbers: dict[str, tuple[Any, int]] = {}
        for name, monomial in self.law.factors.items():
            argument = self.arguments.get(name)
            slots = [slot for slot in self.forward if slot[0] == name]
            if isinstance(argument, fx.Node) and not isinstance(
                argument.meta.get("val"), torch.Tensor
            ):
                slots = []
            for slot in slots:
                alone = self.forward[slot]
                factor = self._log2(monomial, {name: self._delivered(slot, halved)})
                if factor is None or (factor and alone is None):
                    return None
                if alone is not None:
                    operands[slot] = factor
            if not slots:
                factor = self._log2(monomial)
                if factor is None:
                    return None
                if factor:
                    number = self._number(name, argument)
                    if number is not None:
                        numbers[name] = (number, factor)
        return Equation(units, 0, operands, numbers)

    def _delivered(self, slot: Slot, halved: str | None) -> int:
        return (self.forward[slot] or 0) - (slot == (halved, 0))

    def _odd_operand(self) -> str | None:
        """The operand that takes a factor of two back, where a root would split it."""
        even = self._log2(self.law.even)
        if self._log2(self.law.output) is not None and (even is None or even % 2 == 0):
            return None
        return next(name for name in self.law.even or self.law.output if name in self.names)

    def _log2(self, monomial: Monomial, instead: Mapping[str, int] | None = None) -> int | None:
        """log2 of a monomial; None if it is no integer. A name without a scale counts as one."""
        names = {**self.names, **(instead or {})}
        total = Fraction(0)
        for name, power in monomial.items():
            exponent = names.get(name, 0)
            if exponent and isinstance(power, str):
                power = self.arguments.get(power)  # type: ignore[assignment]
                if not isinstance(power, int | float):
                    return None
            if exponent:
                total += Fraction(power) * exponent
        return total.numerator if total.denominator == 1 else None

    def _number(self, name: str, argument: Any) -> Any:
        """The argument, or its default where it was left out; None for neither."""
        if argument is None and name in self.law.defaults:
            return evaluate_default(self.law.defaults[name], self.node)
        return argument


def scaled_number(number: Any, exponent: int) -> float:
    """``number`` times a power of two; infinite where a double cannot hold it."""
    try:
        return math.ldexp(float(number), exponent)
    except OverflowError:
        return math.copysign(math.inf, float(number))
