"""Moments of values that an operation states of what it takes, without data.

A batch norm keeps the mean and variance of its input, so that weights of a trained net tell what
its activations are like. A row's ``states`` says so.
"""

from __future__ import annotations

from torch import Tensor, fx

from unitify.analysis.formulas import formula_stated
from unitify.analysis.moments import Moment, exactly
from unitify.capture.whole import Capture
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, operation_name


def stated_moments(capture: Capture, rules: RuleTable) -> dict[fx.Node, tuple[fx.Node, Moment]]:
    """Value → the operation that states its moments, and these."""
    found: dict[fx.Node, tuple[fx.Node, Moment]] = {}
    for node in capture.graph.nodes:
        rule = rules.get(operation_name(node)) if node.op == "call_function" else None
        if rule is None or not rule.states:
            continue
        operands = _kept(capture, node, rule)
        for name in rule.states:
            source = named_arguments(node)[name]
            if operands and isinstance(source, fx.Node) and source.op == "call_function":
                found[source] = node, formula_stated(Operation(node, {}), rule, operands, name)
    return found


def _kept(capture: Capture, node: fx.Node, rule: Rule) -> dict[str, Moment]:
    """What the operation keeps, exactly; nothing while it is as it was initialized."""
    kept: dict[str, Moment] = {}
    for name in rule.untold:
        argument = named_arguments(node)[name]
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return {}
        value = capture.attribute(str(argument.target))
        if not isinstance(value, Tensor) or value.is_meta:
            return {}
        kept[name] = exactly(value)
    is_told = any(bool((kept[n].mean != value).any()) for n, value in rule.untold.items())
    return kept if is_told else {}
