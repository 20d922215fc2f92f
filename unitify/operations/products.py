"""The operands of a sum of products at one node of a graph: what a cast of the product rounds.

Takes a node and its rule; a row's ``casts`` names arguments, and a list among them also holds
what is added (the biases of a recurrent layer): of a list, matrices are multiplied and vectors not.
"""

from __future__ import annotations

from torch import fx

from unitify.operations.laws import holds_tensors, is_scalable
from unitify.operations.rule_table import Rule
from unitify.operations.schema import named_arguments, nodes_of

#: An argument's name, the index among the nodes in it, and the node.
Operand = tuple[str, int, fx.Node]


def sums_products(rule: Rule | None, node: fx.Node) -> bool:
    """Is the node a sum of products with a floating result (or results)?"""
    has_products = rule is not None and bool(rule.casts)
    return has_products and (is_scalable(node) or holds_tensors(node))


def product_operands(rule: Rule, node: fx.Node) -> list[Operand]:
    """What ``node`` multiplies, in the order of its arguments."""
    return [
        (name, index, operand)
        for name, argument in named_arguments(node).items()
        if name in rule.casts
        for index, operand in enumerate(nodes_of(argument))
        if is_scalable(operand) and (isinstance(argument, fx.Node) or operand.meta["val"].dim() > 1)
    ]
