"""Where residual branches end: found from the graph, not from names.

Takes a graph and the rules, gives the products that come last in a branch x + f(x).
"""

from __future__ import annotations

from torch import fx

from unitify.operations.laws import is_scalable
from unitify.operations.rule_table import Rule, RuleTable
from unitify.operations.schema import operation_name


def branch_ends(graph: fx.Graph, rules: RuleTable) -> frozenset[fx.Node]:
    """The last sums of products of every residual branch, before it is added.

    A residual branch is one term of a sum that was made from the sum's earliest term. In a
    transformer these are the projection out of attention and the one down to the model's width.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    sums = {n for n in graph.nodes if _is_sum(rules.get(operation_name(n)))}
    products = {n for n in graph.nodes if _sums_products(rules.get(operation_name(n)))}
    found: set[fx.Node] = set()
    for node in sums:
        skip, *branches = sorted(_terms(node, sums), key=order.__getitem__) or [node]
        for branch in branches:
            if skip in _upstream(branch, skip, order, set()):
                found |= _upstream(branch, skip, order, products) & products
    return frozenset(found)


def _terms(node: fx.Node, sums: set[fx.Node]) -> list[fx.Node]:
    """What ``node`` adds up, sums that only it uses opened: x + a + b has three terms."""
    found: list[fx.Node] = []
    pending = [n for n in node.all_input_nodes if is_scalable(n)]
    while pending:
        term = pending.pop()
        if term in sums and len(term.users) == 1:
            pending += [n for n in term.all_input_nodes if is_scalable(n)]
        else:
            found.append(term)
    return found


def _sums_products(rule: Rule | None) -> bool:
    return rule is not None and bool(rule.products)


def _is_sum(rule: Rule | None) -> bool:
    """Is every operand brought to the result's scale, and none of them merely selected?"""
    return (
        rule is not None and rule.law is not None and ("out" in rule.law.output and not rule.linear)
    )


def _upstream(
    node: fx.Node,
    skip: fx.Node,
    order: dict[fx.Node, int],
    stops: set[fx.Node],
) -> set[fx.Node]:
    """What ``node`` was made from, back to ``skip`` and not beyond ``stops``."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in found or order[current] < order[skip]:
            continue
        found.add(current)
        if current is not skip and current not in stops:
            pending.extend(current.all_input_nodes)
    return found
