"""What unit scaling as published has to constrain in a graph, and what that costs its gradients.

Blake et al. 2023 (arXiv 2303.11257, section 5): a scaled operation has a factor on its result and
one on the gradient of each operand. Gradients stay true up to a constant only if every operation
uses one factor for both directions on each use that is no *bridge* (cut-edge) of the graph. A plan
knows no such rule, since each edge has a factor that pays for what it changes.

The factors are those for unit operands and unit gradients; constrained ones become their geometric
mean (the paper), or the result's (u-μP, arXiv 2407.17465, and the authors' library since 2024).
Sums are weighted, and a residual branch has its weight at its start in the backward pass, as in the
paper's code. Bridges keep their own factor, and gradients are followed from the outputs back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
from torch import fx

from examples.scheme_study.shares import Shares, shares
from examples.scheme_study.unit_graph import LOSS, UnitGraph, unit_graph, value_of, with_outputs
from unitify.analysis.analyze import analyze
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.plan.scale_plan import ScalePlan
from unitify.rulebook.laws import holds_tensors
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name
from unitify.scheme.structure import adds

#: What a constrained operation uses for both directions; and a plan, which constrains nothing.
RULES = ("geometric mean", "forward factor")
PLANNED = "planned"

#: A use of a value: value, user, which of their uses.
Use = tuple[str, str, int]


@dataclass(frozen=True)
class ScaledOperation:
    """An operation with its ideal factors: unit RMS out for unit RMS in, either way.

    - ``forward``: the factor on its result; ``backward``: that on the gradient of each operand
    - ``joined``: operands whose factor must be that of the result; ``factor``: by rule, what it
      then is
    - ``off``: by rule, log2 RMS of the gradient that it hands to the joined operand that fares
      worst, for a unit gradient
    """

    value: str
    operation: str
    forward: float
    backward: Mapping[str, float]
    joined: tuple[str, ...]
    factor: Mapping[str, float]
    off: Mapping[str, float]


@dataclass(frozen=True)
class StoredValue:
    """RMS of a value and of its gradient as stored, by each of ``RULES`` and as ``PLANNED``.

    ``group``: values that cycles tie together; published, their gradients keep their true ratios.
    """

    value: str
    group: int
    stored: Mapping[str, Rms]


@dataclass(frozen=True)
class Constraints:
    """The published rule on one graph. Plain values.

    ``edges``: uses of differentiable values; ``bridges``: (value, user) of those that are free.
    """

    edges: int
    bridges: tuple[tuple[str, str], ...]
    operations: tuple[ScaledOperation, ...]
    values: tuple[StoredValue, ...]

    @property
    def constrained(self) -> tuple[ScaledOperation, ...]:
        """Operations that have a factor on an edge that is no bridge."""
        return tuple(op for op in self.operations if op.joined)

    def shares(self, rule: str, direction: str) -> Shares:
        """Values ("forward") or gradients ("backward") under one of ``RULES``, or ``PLANNED``."""
        return shares((getattr(v.stored[rule], direction) for v in self.values), direction)


def constraints(
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    loss_fn: LossFunction | None = None,
    *,
    estimates: Estimates | None = None,
    unit: UnitGraph | None = None,
) -> Constraints:
    """Read ``capture`` in the paper's terms; all RMS are predicted.

    ``plan``: its module's. ``estimates``, ``unit``: of the capture, where they have been computed.
    """
    unit = unit or unit_graph(capture, rules, loss_fn)
    if estimates is None:
        estimates = analyze(capture, rules, loss_fn).estimates
    free = bridges_of(unit.uses)
    joined = {u: list(_joined(unit.uses, u, free)) for u in unit.uses}
    means = _geometric_means(unit, rules, joined)
    graphs = {RULES[0]: with_outputs(unit, means, rules, loss_fn), RULES[1]: unit}
    factors = {rule: _factors(unit, held, free) for rule, held in graphs.items()}
    gradients = {rule: _gradients(held, factors[rule]) for rule, held in graphs.items()}
    groups = _groups(unit.uses, free)
    planned = _planned(capture, unit, estimates, plan)

    def stored(vertex: str) -> dict[str, Rms]:
        by_rule = {
            rule: Rms(held.uses.nodes[vertex]["rms"], gradients[rule][vertex])
            for rule, held in graphs.items()
        }
        return {**by_rule, PLANNED: planned(vertex)}

    return Constraints(
        edges=sum(v != LOSS for _, v in unit.uses.edges()),
        bridges=tuple((u, v) for u, v, _ in free if v != LOSS),
        operations=tuple(_operations(unit, graphs, joined)),
        values=tuple(
            StoredValue(vertex, groups[vertex], stored(vertex))
            for vertex, held in unit.uses.nodes.items()
            if held["rms"] is not None
        ),
    )


def bridges_of(uses: nx.MultiDiGraph[str]) -> dict[Use, None]:
    """The uses whose removal takes the graph apart, in its order."""
    found = {frozenset(pair) for pair in nx.bridges(nx.MultiGraph(uses))}
    return {(u, v, key): None for u, v, key in uses.edges if frozenset((u, v)) in found}


def _joined(uses: nx.MultiDiGraph[str], user: str, free: Mapping[Use, None]) -> Iterable[Use]:
    return (use for use in uses.in_edges(user, keys=True) if use not in free)


def _geometric_means(
    unit: UnitGraph, rules: RuleTable, joined: Mapping[str, list[Use]]
) -> dict[str, float]:
    """Of operations with a multiplier: of it and of what joined operands would have.

    A weighted sum stays as it is, whatever its gradients; so does one result of several.
    """
    found = {}
    for node in unit.capture.graph.nodes:
        uses = joined.get(node.name)
        if not uses or node.name not in unit.made.outputs or _is_taken(node):
            continue
        if adds(rules.get(operation_name(node))):
            continue
        logs = [-math.log2(unit.uses.edges[use]["gain"]) for use in uses]
        own = math.log2(unit.made.outputs[node.name])
        found[node.name] = 2.0 ** ((own + math.fsum(logs)) / (1 + len(logs)))
    return found


def _is_taken(node: fx.Node) -> bool:
    """Is it one result of several, and no operation of its own?"""
    return any(holds_tensors(operand) for operand in node.all_input_nodes)


def _factors(unit: UnitGraph, held: UnitGraph, free: Mapping[Use, None]) -> Callable[[Use], float]:
    """The factor on the gradient of each use: the ideal one of a bridge, else the result's.

    In a residual branch gradients are held at another scale, that of the sum over the branch's
    weight: any scales of values do, as long as every use pays for their ratio.
    """
    weights = {one.value: abs(one.branch) for one in unit.made.sums if one.branch}
    scales: dict[str, float] = {}
    for residual, inside in unit.read.sums:
        for node in inside if residual.add.name in weights else ():
            if node.op != "get_attr":
                scales[node.name] = scales.get(node.name, 1.0) / weights[residual.add.name]

    def factor(use: Use) -> float:
        value, user, _ = use
        if use in free:
            return 1.0 / unit.uses.edges[use]["gain"] if user != LOSS else 1.0
        multiplier: float = held.uses.nodes[user]["multiplier"]
        return multiplier * scales.get(value, 1.0) / scales.get(user, 1.0)

    return factor


def _gradients(held: UnitGraph, factor: Callable[[Use], float]) -> dict[str, float]:
    """RMS of the gradient of every vertex: what its users hand back, added up as independent."""
    found: dict[str, float] = {}
    for vertex in reversed(list(held.uses)):
        given = (
            factor((vertex, user, key)) * data["gain"] * found[user]
            for _, user, key, data in held.uses.out_edges(vertex, keys=True, data=True)
        )
        found[vertex] = math.hypot(held.uses.nodes[vertex]["start"], *given)
    return found


def _groups(uses: nx.MultiDiGraph[str], free: Mapping[Use, None]) -> dict[str, int]:
    tied: nx.Graph[str] = nx.Graph()
    tied.add_nodes_from(uses)
    tied.add_edges_from((u, v) for u, v, key in uses.edges if (u, v, key) not in free)
    order = {name: i for i, name in enumerate(uses)}
    groups = sorted(nx.connected_components(tied), key=lambda g: min(order[n] for n in g))
    return {name: index for index, members in enumerate(groups) for name in members}


def _operations(
    unit: UnitGraph,
    graphs: Mapping[str, UnitGraph],
    joined: Mapping[str, list[Use]],
) -> Iterable[ScaledOperation]:
    weights = {one.value: abs(one.branch) for one in unit.made.sums if one.branch}
    #: (end of a residual branch, sum): the branch's weight comes at its start instead.
    ends = {
        (r.branch.name, r.add.name): 1 / weights[r.add.name]
        for r, _ in unit.read.sums
        if r.add.name in weights
    }
    for node in unit.capture.graph.nodes:
        if node.op != "call_function" or node.name not in unit.uses or _is_taken(node):
            continue
        gains: dict[str, float] = {}
        for value, _, data in unit.uses.in_edges(node.name, data=True):
            gains[value] = math.hypot(gains.get(value, 0.0), data["gain"])
        if not gains:
            continue
        uses = joined[node.name]
        factor = {rule: g.uses.nodes[node.name]["multiplier"] for rule, g in graphs.items()}
        handed = {
            rule: [
                math.log2(held * ends.get(use[:2], 1.0) * unit.uses.edges[use]["gain"])
                for use in uses
            ]
            for rule, held in factor.items()
        }
        yield ScaledOperation(
            value=node.name,
            operation=operation_name(node),
            forward=unit.uses.nodes[node.name]["multiplier"],
            backward={value: 1 / gain for value, gain in gains.items()},
            joined=tuple(dict.fromkeys(value for value, _, _ in uses)),
            factor=factor,
            off={rule: max(logs, key=abs) for rule, logs in handed.items() if logs},
        )


def _planned(
    capture: Capture, unit: UnitGraph, estimates: Estimates, plan: ScalePlan
) -> Callable[[str], Rms]:
    def planned(vertex: str) -> Rms:
        made = capture.reparametrization
        name = vertex if made is None else value_of(vertex, made)
        rms, scale = estimates.get(name, Rms()), plan.unit(name)
        return Rms(
            None if rms.forward is None else rms.forward / scale.fwd,
            None if rms.backward is None else rms.backward / scale.bwd,
        )

    return planned
