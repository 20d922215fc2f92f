"""Residual branches x + f(x), found from the graph and the rules, not from names.

Takes a graph and the rules. Gives its residual sums in order, and the last contractions of their
branches. A walk stops at the skip, and visits no node twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import operation_name


@dataclass(frozen=True)
class Residual:
    """``add`` = ``skip`` + ``branch``, where ``branch`` is computed from ``skip``.

    ``origin``: the input of the branch. It is the skip itself or, where several branches of one
    value are added one by one (x + f(x) + g(x)), that value.
    ``is_pointwise``: does the value reach the sum through the branch without any contraction?
    Then the sum is a function of the value element by element (x + x³, a gated state).
    """

    add: fx.Node
    skip: fx.Node
    branch: fx.Node
    origin: fx.Node
    is_pointwise: bool


def residuals(graph: fx.Graph, rules: RuleTable) -> tuple[Residual, ...]:
    """Every residual sum of two terms, in the graph's order."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    contractions, made = _contractions(graph, rules), _made(graph, rules)
    found: dict[fx.Node, Residual] = {}
    for node in graph.nodes:
        if not _is_sum(rules.get(operation_name(node))):
            continue
        terms = [n for n in node.all_input_nodes if is_scalable(n)]
        if len(terms) != 2:
            continue
        for skip, branch in (terms, terms[::-1]):
            origin = _origin(skip, found)
            if _is_made_from(branch, origin, order, found, made):
                direct = _upstream(branch, origin, order, contractions | made)
                found[node] = Residual(node, skip, branch, origin, origin in direct)
                break
    return tuple(found.values())


def branches(
    graph: fx.Graph, found: tuple[Residual, ...]
) -> Iterator[tuple[Residual, list[fx.Node]]]:
    """Each residual with the nodes of its branch. A nested branch keeps its nodes for itself.

    Linear in the size of the graph.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    owned: set[fx.Node] = set()
    for residual in found:
        inside: list[fx.Node] = []
        pending = [residual.branch]
        while pending:
            current = pending.pop()
            if current in owned or order[current] <= order[residual.origin]:
                continue
            owned.add(current)
            inside.append(current)
            pending.extend(current.all_input_nodes)
        owned.add(residual.add)
        yield residual, inside


def branch_ends(graph: fx.Graph, rules: RuleTable) -> frozenset[fx.Node]:
    """The last contractions of every residual branch, before it is added.

    In a transformer these are the output projection of attention and the down projection of the
    MLP.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    contractions = _contractions(graph, rules)
    ends: set[fx.Node] = set()
    for residual in residuals(graph, rules):
        ends |= _upstream(residual.branch, residual.origin, order, contractions) & contractions
    return frozenset(ends)


def _contractions(graph: fx.Graph, rules: RuleTable) -> set[fx.Node]:
    return {n for n in graph.nodes if (r := rules.get(operation_name(n))) and r.contraction}


def _made(graph: fx.Graph, rules: RuleTable) -> set[fx.Node]:
    """Values that take only a shape from another, such as the first state of a recurrence."""
    return {n for n in graph.nodes if (r := rules.get(operation_name(n))) and r.creates}


def _is_sum(rule: Rule | None) -> bool:
    """Does the operation bring every operand to the result's scale, and add instead of select?"""
    return (
        rule is not None and rule.law is not None and ("out" in rule.law.output and not rule.linear)
    )


def _origin(skip: fx.Node, found: Mapping[fx.Node, Residual]) -> fx.Node:
    """The input of the branches that ``skip`` already sums; ``skip`` where it sums none."""
    while skip in found and len(skip.users) == 1:
        skip = found[skip].skip
    return skip


def _is_made_from(
    node: fx.Node,
    source: fx.Node,
    order: Mapping[fx.Node, int],
    found: Mapping[fx.Node, Residual],
    made: set[fx.Node],
) -> bool:
    """Is ``source`` a proper ancestor of ``node``? Skips of residual sums are followed first."""
    seen: set[fx.Node] = {node, *made}
    pending = list(node.all_input_nodes)
    while pending:
        current = pending.pop()
        if current is source:
            return True
        if current in seen or order[current] < order[source]:
            continue
        seen.add(current)
        pending.extend(current.all_input_nodes)
        if current in found:
            pending.append(found[current].skip)
    return False


def _upstream(
    node: fx.Node, source: fx.Node, order: Mapping[fx.Node, int], stops: set[fx.Node]
) -> set[fx.Node]:
    """The ancestors of ``node``, back to ``source`` and not beyond ``stops``."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in found or order[current] < order[source]:
            continue
        found.add(current)
        if current is not source and current not in stops:
            pending.extend(current.all_input_nodes)
    return found
