"""The graph of scale classes: values of one scale as nodes, rescales between them as edges."""

from __future__ import annotations

import networkx as nx
import torch
from torch import fx

from unitify.plan.scale_plan import ScalePlan


def scale_classes(graph: fx.Graph, plan: ScalePlan) -> nx.MultiDiGraph:
    """A class holds values of one scale that reach each other without a rescale.

    A node has the name of the first value of its class, all of them as ``values``, and their
    ``scale``. An edge is a use of a value through rescales, with the product of their factors as
    ``forward`` and ``backward``. Takes time linear in the size of the emitted ``graph``.
    """
    together: nx.Graph = nx.Graph()
    together.add_nodes_from(plan.values)
    crossings: list[tuple[str, str, float, float]] = []
    for node in graph.nodes:
        if node.name not in plan.values:
            continue
        for operand in node.all_input_nodes:
            source, forward, backward = _source(operand)
            if source not in plan.values:
                continue
            if operand.name != source:
                crossings.append((source, node.name, forward, backward))
            elif plan.values[source] == plan.values[node.name]:
                together.add_edge(source, node.name)
    order = {name: position for position, name in enumerate(plan.values)}
    classes: nx.MultiDiGraph = nx.MultiDiGraph()
    owner: dict[str, str] = {}
    for members in nx.connected_components(together):
        values = tuple(sorted(members, key=order.__getitem__))
        classes.add_node(values[0], values=values, scale=plan.values[values[0]])
        owner.update(dict.fromkeys(values, values[0]))
    for source, target, forward, backward in crossings:
        classes.add_edge(owner[source], owner[target], forward=forward, backward=backward)
    return classes


def _source(node: fx.Node) -> tuple[str, float, float]:
    """The value that a chain of rescales starts from, and the product of their factors."""
    forward = backward = 1.0
    while node.target is torch.ops.unitify.rescale.default:
        source, own_forward, own_backward = node.args
        forward, backward = forward * float(own_forward), backward * float(own_backward)  # type: ignore[arg-type]
        assert isinstance(source, fx.Node)
        node = source
    return node.name, forward, backward
