"""The operands of a contraction at one node of a graph: its casts round these.

Takes a node and its rule. A row's ``casts`` names arguments. One of them may be a list that also
holds vectors, which are added (the biases of a recurrent layer). Only its matrices are multiplied.
"""

from __future__ import annotations

from torch import fx

from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import named_arguments, nodes_of

#: The name of an argument, the index of a node in it, and the node.
Operand = tuple[str, int, fx.Node]


def is_contraction(rule: Rule | None, node: fx.Node) -> bool:
    """Is the node a contraction with a floating result?"""
    has_operands = rule is not None and bool(rule.casts)
    return has_operands and (is_scalable(node) or holds_tensors(node))


def contraction_operands(rule: Rule, node: fx.Node) -> list[Operand]:
    """The operands that ``node`` multiplies, in the order of its arguments."""
    return [
        (name, index, operand)
        for name, argument in named_arguments(node).items()
        if name in rule.casts
        for index, operand in enumerate(nodes_of(argument))
        if is_scalable(operand) and (isinstance(argument, fx.Node) or operand.meta["val"].dim() > 1)
    ]


def contracted(rule: Rule, node: fx.Node, name: str, operand: fx.Node) -> int:
    """The dimension of ``operand`` over which ``node`` sums, negative as in Python."""
    dimensions = len(shape_of(operand.meta["val"]))
    axis = rule.contracts.get(name, _usual_axis(rule, node, name))
    if isinstance(axis, str):
        axis = named_arguments(node)[axis][-1]
    axis = axis - dimensions if axis >= 0 else axis
    return axis if -dimensions <= axis else -1


def made_over(rule: Rule, node: fx.Node) -> int:
    """The dimension of the result over which the backward pass sums, negative as in Python."""
    return _usual_axis(rule, node, "") if rule.window else -1


def _usual_axis(rule: Rule, node: fx.Node, name: str) -> int:
    """The dimension that is summed by default: the channels of an image, else the last."""
    if rule.window:
        ranks = [len(shape_of(n.meta["val"])) for _, _, n in contraction_operands(rule, node)]
        return 1 - max(ranks)
    is_right = rule.matmul is not None and name == rule.matmul.right
    return -2 if is_right and rule.matmul and not rule.matmul.is_transposed else -1
