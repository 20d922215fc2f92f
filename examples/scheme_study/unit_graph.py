"""A captured model as unit scaling makes it, read as a graph of uses with a gain on each.

    capture ─► constants of the scheme ─► moments, both directions ─► uses

An operation and the multiplier of its result are one vertex, as in Blake et al. 2023 (arXiv
2303.11257, section 3). Nothing is drawn and nothing is run: weights are N(0, 1), inputs are of unit
RMS. A model that a scheme made has its own constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import networkx as nx
from torch import fx

from examples.scheme_study.drawn_moments import DrawnMoments, unit_weights
from unitify.analysis.analyze import both_ways
from unitify.analysis.backward import BackwardMoments
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.estimates import Estimates
from unitify.reparametrization import Reparametrization
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.extremes import extreme_values
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.scheme.multipliers import multipliers
from unitify.scheme.options import UnitScheme
from unitify.scheme.reparametrize import with_constants
from unitify.scheme.structure import Structure, structure

#: The vertex that stands for a loss outside of the graph, made of several outputs.
LOSS = ""
#: What the multiplier of a result is called: the name of that, and this.
_MULTIPLIED = "_multiplied"


@dataclass(frozen=True)
class UnitGraph:
    """``capture`` holds the constants of ``made`` in its graph.

    - ``read``: the structure of the graph without multipliers of results
    - ``estimates``: RMS of its values and gradients
    - ``uses``: a vertex for each value that receives a gradient, in the graph's order, with its
      ``rms`` (None for masks and several results), ``multiplier`` and ``start`` (the gradient that
      it is given from outside, by the largest such); an edge from value to user for each use, with
      its ``gain``: RMS of the gradient handed back, over that of the user's result before its
      multiplier
    """

    capture: Capture
    made: Reparametrization
    read: Structure
    estimates: Estimates
    uses: nx.MultiDiGraph[str]


def unit_graph(
    capture: Capture, rules: RuleTable, loss_fn: LossFunction | None = None
) -> UnitGraph:
    """The graph that unit scaling makes of ``capture``; of a scheme's own capture, that itself."""
    made = capture.reparametrization
    if made is None:
        made = multipliers(capture, UnitScheme(), rules)
        plain, scaled = capture, with_constants(capture, made)
    else:
        plain, scaled = replace(capture, graph=_without(capture.graph, made.outputs)), capture
    return _read(scaled, made, structure(plain, rules), rules, loss_fn)


def with_outputs(
    unit: UnitGraph,
    outputs: Mapping[str, float],
    rules: RuleTable,
    loss_fn: LossFunction | None = None,
) -> UnitGraph:
    """The same with other multipliers of results, by value; those of ``unit`` where none is."""
    outputs = {**unit.made.outputs, **outputs}
    graph = _copied(unit.capture.graph)
    for node, source in _multipliers(graph, outputs):
        node.args = (source, outputs[source.name])
    made = replace(unit.made, outputs=outputs)
    capture = replace(unit.capture, graph=graph, reparametrization=made)
    return _read(capture, made, unit.read, rules, loss_fn)


def vertex_of(name: str, made: Reparametrization) -> str:
    """The vertex that a value belongs to: the operation's whose multiplier it is, else itself."""
    own = name.removesuffix(_MULTIPLIED)
    return own if own in made.outputs else name


def value_of(vertex: str, made: Reparametrization) -> str:
    """The value that leaves a vertex."""
    return vertex + _MULTIPLIED if vertex in made.outputs else vertex


def _copied(graph: fx.Graph) -> fx.Graph:
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    return made


def _multipliers(graph: fx.Graph, outputs: Mapping[str, float]) -> list[tuple[fx.Node, fx.Node]]:
    """Every multiplier of a result, and that result."""
    return [
        (user, node)
        for node in graph.nodes
        if node.name in outputs
        for user in node.users
        if user.name == node.name + _MULTIPLIED
    ]


def _without(graph: fx.Graph, outputs: Mapping[str, float]) -> fx.Graph:
    made = _copied(graph)
    for node, source in _multipliers(made, outputs):
        node.replace_all_uses_with(source)
        made.erase_node(node)
    return made


def _read(
    capture: Capture,
    made: Reparametrization,
    read: Structure,
    rules: RuleTable,
    loss_fn: LossFunction | None,
) -> UnitGraph:
    masks = extreme_values(capture.graph, rules, capture.example, capture.attribute)
    inputs = {n.name for n in read.inputs} - {n.name for n in masks}
    forward = DrawnMoments(capture, rules, unit_weights(made.parameters), frozenset(inputs))
    backward, estimates = both_ways(forward, loss_fn)
    uses = _uses(capture, made, backward, masks)
    _close(uses, loss_fn)
    return UnitGraph(capture, made, read, estimates, uses)


def _uses(
    capture: Capture,
    made: Reparametrization,
    backward: BackwardMoments,
    masks: set[fx.Node],
) -> nx.MultiDiGraph[str]:
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph()
    nodes = {node.name: node for node in capture.graph.nodes}
    for node in nodes.values():
        if node not in backward.found:
            continue
        vertex = vertex_of(node.name, made)
        graph.add_node(vertex, start=0.0, multiplier=made.outputs.get(vertex, 1.0))
        # The multiplier comes last, and what it leaves is the vertex's.
        is_known = is_scalable(node) and node not in masks
        graph.nodes[vertex]["rms"] = backward.of.rms(node) if is_known else None
    for node in nodes.values():
        vertex = vertex_of(node.name, made)
        for step in backward.steps.get(node.name, ()):
            if not step.inputs:
                graph.nodes[vertex]["start"] = math.hypot(graph.nodes[vertex]["start"], step.rms)
                continue
            (user,) = step.inputs
            target = vertex_of(user, made)
            gain = _gain(node, nodes[user], backward, step.rms)
            if target != vertex and gain > 0 and math.isfinite(gain):
                graph.add_edge(vertex, target, gain=gain)
    return graph


def _gain(node: fx.Node, user: fx.Node, backward: BackwardMoments, given: float) -> float:
    if holds_tensors(node):
        # One result of several: the share of the elements that it has.
        count = shape_of(user.meta["val"])
        whole = math.sqrt(sum(math.prod(shape) for shape, _ in _results(node, backward)))
        return math.sqrt(math.prod(count)) / whole if whole else 0.0
    results = _results(user, backward)
    elements = sum(math.prod(shape) for shape, _ in results)
    energy = sum(math.prod(shape) * rms**2 for shape, rms in results)
    return given / math.sqrt(energy / elements) if energy else 0.0


def _results(node: fx.Node, backward: BackwardMoments) -> list[tuple[tuple[int, ...], float]]:
    """Shape of each result that receives a gradient, and the gradient's RMS."""
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else [value]
    pairs = zip(values, backward.found.get(node, []), strict=False)
    return [(shape_of(v), rms) for v, rms in pairs if rms is not None]


def _close(graph: nx.MultiDiGraph[str], loss_fn: LossFunction | None) -> None:
    """Gradients from outside by the largest of them; a loss outside ties its outputs together."""
    starts = {name: held["start"] for name, held in graph.nodes.items() if held["start"]}
    for name, start in starts.items():
        graph.nodes[name]["start"] = start / max(starts.values())
    if loss_fn is not None and len(starts) > 1:
        graph.add_node(LOSS, start=0.0, multiplier=1.0, rms=None)
        graph.add_edges_from(((name, LOSS) for name in starts), gain=0.0)
