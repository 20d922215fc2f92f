"""The constants of a scheme: weights of sums, numbers inside operations, multipliers of results.

The rules say which results are brought to unit RMS. ``Sweep`` finds the multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from unitify.capture.whole import Capture
from unitify.reparametrization import ParameterRole, Reparametrization, WeightedSum
from unitify.rulebook.dimensions import evaluate, shape_of, symbol_values
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import operation_name, set_argument
from unitify.scheme.options import UnitScheme
from unitify.scheme.roles import parameter_roles
from unitify.scheme.stacks import stacks, weighted_sums
from unitify.scheme.structure import Structure, structure
from unitify.scheme.sweep import Sweep, weights_in_order


def multipliers(capture: Capture, scheme: UnitScheme, rules: RuleTable) -> Reparametrization:
    """Choose every constant that ``scheme`` puts into the graph of ``capture``."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(capture.graph, {}))
    capture = replace(capture, graph=graph)
    read = structure(capture, rules)
    roles = parameter_roles(capture, read, rules, scheme.roles)
    sums = _sums(graph, read, scheme)
    numbers: dict[str, dict[str, float]] = {}
    for node in graph.nodes:
        found = _numbers(node, rules.get(operation_name(node)), sums.get(node.name), scheme, read)
        for name, value in found.items():
            set_argument(node, name, value)
            numbers.setdefault(node.name, {})[name] = value
    sweep = Sweep(capture, rules, scheme, read, roles, sums)
    sweep.run()
    return Reparametrization(
        scheme=scheme.name,
        options=scheme.as_table(),
        outputs=sweep.outputs,
        operands=sweep.operand_multipliers,
        numbers=numbers,
        parameters=_described(capture, sweep, read, roles, sums),
        sums=tuple(sums.values()),
    )


def _sums(graph: fx.Graph, read: Structure, scheme: UnitScheme) -> dict[str, WeightedSum]:
    if scheme.residual == "default":
        return {}
    found = [one for stack in stacks(graph, read) for one in weighted_sums(stack, scheme)]
    return {one.value: one for one in found}


def _numbers(
    node: fx.Node,
    rule: Rule | None,
    weighted: WeightedSum | None,
    scheme: UnitScheme,
    read: Structure,
) -> dict[str, float]:
    """Numbers inside an operation: the weight of a sum's second term, the divisor of logits."""
    if rule is None:
        return {}
    if weighted is not None:
        assert rule.weighs
        first, second = weights_in_order(node, weighted, read)
        return {rule.weighs: second / first}
    if rule.width and rule.logits:
        width = evaluate(rule.dims[rule.width], symbol_values(node))
        power = 1.0 if scheme.logits == "1/d" else 0.5
        return {rule.logits: scheme.alpha_attn_softmax * width**-power}
    return {}


def _described(
    capture: Capture,
    sweep: Sweep,
    read: Structure,
    roles: Mapping[str, str],
    sums: Mapping[str, WeightedSum],
) -> dict[str, ParameterRole]:
    depth: dict[str, int] = {}
    for residual, inside in read.sums:
        if residual.add.name in sums:
            used = {read.weights[n] for node in inside for n in node.all_input_nodes
                    if n in read.weights}  # fmt: skip
            depth |= dict.fromkeys(used, sums[residual.add.name].depth)
    found = {}
    for name, first in capture.aliases.items():
        shape = shape_of(capture.attribute(first))
        fan_in = sweep.fan_in.get(first, 0.0)
        is_matrix = fan_in and roles[first] != "embedding"
        fan_out = math.prod(shape) / fan_in if is_matrix else float(shape[-1] if shape else 1)
        found[name] = ParameterRole(roles[first], fan_in, fan_out, depth.get(first, 0))
    return found
