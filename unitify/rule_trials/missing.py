"""Operations of a graph without a row in the rule table, which run at true scale."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx

from unitify.capture.whole import Capture
from unitify.diagnostics import NoRule
from unitify.rulebook.laws import holds_tensors, is_scalable, takes_apart
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name


def without_rule(capture: Capture, rules: RuleTable) -> tuple[NoRule, ...]:
    """Operations on floating values that have no rule, the most frequent first."""
    counts = Counter(operation_name(node) for node in nodes_without_rule(capture, rules))
    return tuple(
        NoRule(where=type(capture.model).__name__, operation=operation, count=count)
        for operation, count in counts.most_common()
    )


def nodes_without_rule(capture: Capture, rules: RuleTable) -> list[fx.Node]:
    """The calls of operations on floating values that have no rule, in the graph's order."""
    return [
        node
        for node in capture.graph.nodes
        if node.op == "call_function"
        and not takes_apart(node)
        and not isinstance(node.meta.get("val"), int | float | torch.SymInt)
        and any(is_scalable(n) or holds_tensors(n) for n in (node, *node.all_input_nodes))
        and operation_name(node) not in rules
    ]
