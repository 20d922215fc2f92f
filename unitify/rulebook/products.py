"""The operands of a sum of products at one node of a graph: what a cast of the product rounds.

Takes a node and its rule; a row's ``casts`` names arguments, and a list among them also holds
what is added (the biases of a recurrent layer): of a list, matrices are multiplied and vectors not.
"""

from __future__ import annotations

from torch import fx

from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import named_arguments, nodes_of

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


def contracted(rule: Rule, node: fx.Node, name: str, operand: fx.Node) -> int:
    """The dimension of an operand over which ``node`` sums products, counted from the last, -1."""
    dimensions = len(shape_of(operand.meta["val"]))
    axis = rule.contracts.get(name, _told(rule, node, name))
    if isinstance(axis, str):
        axis = named_arguments(node)[axis][-1]
    axis = axis - dimensions if axis >= 0 else axis
    return axis if -dimensions <= axis else -1


def made_over(rule: Rule, node: fx.Node) -> int:
    """The dimension of the result that products with a gradient of it are summed over, likewise."""
    return _told(rule, node, "") if rule.window else -1


def _told(rule: Rule, node: fx.Node, name: str) -> int:
    """Of images it is the channels, which stand in front of as many dimensions as windows have."""
    if rule.window:
        ranks = [len(shape_of(n.meta["val"])) for _, _, n in product_operands(rule, node)]
        return 1 - max(ranks)
    is_right = rule.matmul is not None and name == rule.matmul.right
    return -2 if is_right and rule.matmul and not rule.matmul.is_transposed else -1
