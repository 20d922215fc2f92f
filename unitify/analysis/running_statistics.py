"""Running statistics: moments of values that a trained model keeps in its buffers.

A batch norm keeps the mean and variance of its input. So the buffers of a trained model give
moments of its activations without data. A row's ``statistics`` has the formulas.
"""

from __future__ import annotations

from torch import Tensor, fx

from unitify.analysis.formulas import formula_statistics
from unitify.analysis.moments import Moment, exactly
from unitify.capture.whole import Capture
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, operation_name


def running_statistics(capture: Capture, rules: RuleTable) -> dict[fx.Node, tuple[fx.Node, Moment]]:
    """Value → the operation that keeps its statistics, and the moments from these."""
    found: dict[fx.Node, tuple[fx.Node, Moment]] = {}
    for node in capture.graph.nodes:
        rule = rules.get(operation_name(node)) if node.op == "call_function" else None
        if rule is None or not rule.statistics:
            continue
        operands = _kept(capture, node, rule)
        for name in rule.statistics:
            source = named_arguments(node)[name]
            if operands and isinstance(source, fx.Node) and source.op == "call_function":
                found[source] = node, formula_statistics(Operation(node, {}), rule, operands, name)
    return found


def _kept(capture: Capture, node: fx.Node, rule: Rule) -> dict[str, Moment]:
    """The statistics in an operation's buffers; empty while they have their initial values."""
    kept: dict[str, Moment] = {}
    for name in rule.initial:
        argument = named_arguments(node)[name]
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return {}
        value = capture.attribute(str(argument.target))
        if not isinstance(value, Tensor) or value.is_meta:
            return {}
        kept[name] = exactly(value)
    is_trained = any(bool((kept[n].mean != value).any()) for n, value in rule.initial.items())
    return kept if is_trained else {}
