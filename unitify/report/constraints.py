"""What unit scaling as published would have to constrain in a graph, and what that costs.

Blake et al. 2023 (arXiv 2303.11257, section 5) scale the backward pass apart from the forward pass.
The gradients stay those of some model only if every operation uses one factor for both directions
on each edge that is no *bridge* (cut-edge) of the graph. Here a captured model is read in their
terms; a plan knows no such rule, since each edge has a factor that pays for what it changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import networkx as nx
from torch import fx

from unitify.analysis.analyse import Analysis, analyse
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.operations.laws import is_scalable
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import operation_name
from unitify.plan.scale_plan import Scale, ScalePlan


@dataclass(frozen=True)
class ScaledOperation:
    """An operation with its ideal factors: unit RMS out for unit RMS in, either way.

    ``forward``: the factor on its result; ``backward``: that on the gradient of each operand, by
    value. ``joined``: the operands on edges that are no bridges, whose factors must be ``forward``.
    """

    value: str
    operation: str
    forward: float
    backward: Mapping[str, float]
    joined: tuple[str, ...]

    @property
    def spread(self) -> float:
        """How far apart the factors are that must be made one, as a ratio; one for none."""
        held = [self.forward, *(self.backward[name] for name in self.joined)]
        return max(held) / min(held) if self.joined and min(held) > 0 else 1.0


@dataclass(frozen=True)
class StoredGradient:
    """RMS of a gradient as it would be stored: with factors joined as published, and by the plan.

    ``group``: values that cycles tie together; their gradients keep their true ratios if joined.
    """

    value: str
    group: int
    joined: float
    planned: float


@dataclass(frozen=True)
class Constraints:
    """The published rule on one graph. Plain values, JSON-ready.

    ``edges``: uses of differentiable values; ``bridges``: (value, user) of those that are free.
    """

    edges: int
    bridges: tuple[tuple[str, str], ...]
    operations: tuple[ScaledOperation, ...]
    gradients: tuple[StoredGradient, ...]

    @property
    def constrained(self) -> tuple[ScaledOperation, ...]:
        """Operations that have a factor on an edge that is no bridge."""
        return tuple(op for op in self.operations if op.joined)

    def unit_share(self, which: str) -> float:
        """The share of gradients with RMS in [1/2, 2]; ``which``: "joined" or "planned"."""
        held = [getattr(g, which) for g in self.gradients]
        return sum(0.5 <= rms <= 2 for rms in held) / len(held) if held else math.nan

    def octaves(self, which: str) -> float:
        """Root mean square of log2 RMS over all gradients: how far from unit they are."""
        logs = [math.log2(getattr(g, which)) ** 2 for g in self.gradients if getattr(g, which) > 0]
        return math.sqrt(sum(logs) / len(logs)) if logs else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "edges": self.edges,
            "bridges": [list(pair) for pair in self.bridges],
            "operations": [asdict(op) | {"spread": op.spread} for op in self.operations],
            "gradients": [asdict(g) for g in self.gradients],
            "unit_share": {w: self.unit_share(w) for w in ("joined", "planned")},
            "octaves": {w: self.octaves(w) for w in ("joined", "planned")},
        }

    def describe(self) -> str:
        """The figures, and the operations whose factors lie furthest apart."""
        lines = [
            f"{self.edges} edges, {len(self.bridges)} of them bridges",
            f"{len(self.constrained)} of {len(self.operations)} operations would be constrained",
            *(
                f"gradients {name}: {100 * self.unit_share(which):.1f} % at unit RMS, "
                f"{self.octaves(which):.2f} octaves from one"
                for name, which in (("with joined factors", "joined"), ("as planned", "planned"))
            ),
        ]
        worst = sorted(self.constrained, key=lambda op: -op.spread)[:8]
        for op in worst:
            factors = ", ".join(f"{n} {op.backward[n]:.4g}" for n in op.joined)
            lines.append(f"  {op.value}: forward {op.forward:.4g}, backward {factors}")
        return "\n".join(lines)


def constraints(
    capture: Capture, plan: ScalePlan, rules: RuleTable, loss_fn: LossFunction | None = None
) -> Constraints:
    """Read ``capture`` in the paper's terms, with predicted RMS. ``plan``: its module's."""
    made = capture.reparametrisation
    weight_rms = None if made is None else 1.0
    analysis = analyse(capture, rules, loss_fn, weight_rms)
    outputs: Mapping[str, float] = {} if made is None else made.outputs
    graph = _graph(capture, analysis, outputs)
    bridges = set(nx.bridges(nx.MultiGraph(graph)))
    free = {pair for u, v in bridges for pair in ((u, v), (v, u))}
    return Constraints(
        edges=graph.number_of_edges(),
        bridges=tuple((u, v) for u, v, _ in graph.edges if (u, v) in free),
        operations=tuple(_operations(capture, analysis, graph, free, outputs)),
        gradients=tuple(_gradients(analysis, graph, free, plan)),
    )


def _graph(
    capture: Capture, analysis: Analysis, outputs: Mapping[str, float]
) -> nx.MultiDiGraph[str]:
    """Uses of values that receive gradients; an operation and its multiplier are one vertex.

    A vertex holds the ``gradient`` of what leaves it and its ``own``, before the multiplier.
    """
    multiplied = {f"{name}_multiplied": name for name in outputs}
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    for node in capture.graph.nodes:
        gradient = _gradient(analysis, node)
        if gradient is None:
            continue
        vertex = multiplied.get(node.name, node.name)
        if vertex not in graph:
            graph.add_node(vertex, gradient=gradient, own=gradient)
        graph.nodes[vertex]["gradient"] = gradient
        for operand in node.all_input_nodes:
            source = multiplied.get(operand.name, operand.name)
            if source != vertex and _gradient(analysis, operand) is not None:
                graph.add_edge(source, vertex)
    return graph


def _gradient(analysis: Analysis, node: fx.Node) -> float | None:
    found = analysis.estimates.get(node.name) if is_scalable(node) else None
    return found.backward if found is not None and found.backward else None


def _operations(
    capture: Capture,
    analysis: Analysis,
    graph: nx.MultiDiGraph[str],
    free: set[tuple[str, str]],
    outputs: Mapping[str, float],
) -> Iterable[ScaledOperation]:
    for node in capture.graph.nodes:
        if node.op != "call_function" or node.name not in graph:
            continue
        own = graph.nodes[node.name]["own"]
        backward: dict[str, float] = {}
        joined: list[str] = []
        for operand in node.all_input_nodes:
            source = operand.name.removesuffix("_multiplied")
            source = source if source in outputs else operand.name
            given = sum(
                step.rms**2
                for step in analysis.backward.get(operand.name, ())
                if node.name in step.inputs
            )
            if given > 0 and source in graph:
                backward[source] = own / math.sqrt(given)
                if (source, node.name) not in free:
                    joined.append(source)
        if backward:
            yield ScaledOperation(
                node.name, operation_name(node), outputs.get(node.name, 1.0), backward,
                tuple(joined),
            )  # fmt: skip


def _gradients(
    analysis: Analysis, graph: nx.MultiDiGraph[str], free: set[tuple[str, str]], plan: ScalePlan
) -> Iterable[StoredGradient]:
    """A group's gradients keep their true ratios; a bridge brings the last of them to one."""
    tied: nx.Graph[str] = nx.Graph()
    tied.add_nodes_from(graph)
    tied.add_edges_from((u, v) for u, v, _ in graph.edges if (u, v) not in free)
    order = {name: i for i, name in enumerate(graph)}
    groups = sorted(nx.connected_components(tied), key=lambda g: min(order[n] for n in g))
    for index, members in enumerate(groups):
        last = graph.nodes[max(members, key=order.__getitem__)]["gradient"]
        for name in sorted(members, key=order.__getitem__):
            gradient = graph.nodes[name]["gradient"]
            held = f"{name}_multiplied" if f"{name}_multiplied" in plan.values else name
            planned = gradient / plan.values.get(held, Scale()).bwd
            yield StoredGradient(name, index, gradient / last, planned)
