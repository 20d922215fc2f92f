"""A rule's law at one node as linear equations: log2 of its factors from log2 of its scales.

Laws are monomials, so that exponents are linear. ``laws.factors`` gives the factors for given
scales. This file calls it once for each operand, and does not read laws a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from unitify.rulebook.laws import Factors, factors, is_scalable
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import named_arguments, nodes_of

#: An argument's name, and the index among the nodes in it.
Slot = tuple[str, int]
#: The coefficient of each operand's exponent, and of the result's, in another exponent.
Multiples = Mapping[fx.Node, float]

#: The exponent to try. No law takes a root of a scale that does not divide it.
_ASKED = 24


@dataclass(frozen=True)
class LinearLaw:
    """``laws.Factors`` for any scales.

    ``halved``: for a root, the operand that takes a factor of two back where it has to, and the
    sum that has to be whole.
    """

    output: Multiples
    operands: Mapping[Slot, Multiples]
    true_gradient: bool
    halved: tuple[fx.Node, Slot, Multiples] | None = None


def linear_law(rule: Rule | None, node: fx.Node) -> LinearLaw:
    """The law of ``node``; its operands are restored where no law holds for all scales."""
    arguments = named_arguments(node)
    slots = {
        (name, index): operand
        for name, argument in arguments.items()
        for index, operand in enumerate(nodes_of(argument))
        if is_scalable(operand)
    }
    none = factors(rule, node, lambda _: 0)
    asked = {o: factors(rule, node, _one(o)) for o in slots.values()}
    own = factors(rule, node, lambda _: 0, _ASKED)
    if none.restored or any(found.restored for found in asked.values()):
        restored = {slot: {operand: 1.0} for slot, operand in slots.items()}
        return LinearLaw({}, restored, none.true_gradient)
    asked.setdefault(node, own)
    output = {o: found.output / _ASKED for o, found in asked.items() if found.output}
    operands = {slot: _at(slot, asked) for slot in slots}
    return LinearLaw(output, operands, none.true_gradient, _halved(rule, slots, output))


def _one(asked: fx.Node) -> Callable[[fx.Node], int]:
    return lambda operand: _ASKED if operand is asked else 0


def _at(slot: Slot, asked: Mapping[fx.Node, Factors]) -> Multiples:
    found = {operand: factors.operands.get(slot, 0) for operand, factors in asked.items()}
    return {operand: exponent / _ASKED for operand, exponent in found.items() if exponent}


def _halved(
    rule: Rule | None, slots: Mapping[Slot, fx.Node], output: Multiples
) -> tuple[fx.Node, Slot, Multiples] | None:
    law = rule.law if rule is not None else None
    has_root = any(not multiple.is_integer() for multiple in output.values())
    if law is None or not (law.even or has_root):
        return None
    wanted = law.even or law.output
    slot = next(slot for name in wanted for slot in slots if slot[0] == name)
    if not law.even:
        return slots[slot], slot, output
    halves: dict[fx.Node, float] = {}
    for (name, _), operand in slots.items():
        if name in law.even:
            halves[operand] = halves.get(operand, 0.0) + float(law.even[name]) / 2
    return slots[slot], slot, halves
