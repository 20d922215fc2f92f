"""Scale classes of a transformed graph: values that share a scale, and the rescales between them."""

from __future__ import annotations

import networkx as nx
import torch
from torch import fx

from unitify.laws import is_scalable


def scale_classes(graph: fx.Graph) -> nx.MultiDiGraph:
    """The classes of an emitted graph.

    A node is the name of a class's first value, with its members as ``values``; an edge is a
    rescale, with its ``name`` and its factors ``forward`` and ``backward``.
    """
    together: nx.Graph = nx.Graph()
    rescales = []
    for node in graph.nodes:
        if not is_scalable(node):
            continue
        together.add_node(node.name)
        for operand in node.all_input_nodes:
            if not is_scalable(operand):
                continue
            if node.target is torch.ops.unitify.rescale.default:
                rescales.append((operand.name, node))
            else:
                together.add_edge(operand.name, node.name)
    order = {node.name: position for position, node in enumerate(graph.nodes)}
    classes: nx.MultiDiGraph = nx.MultiDiGraph()
    owner: dict[str, str] = {}
    for members in nx.connected_components(together):
        values = sorted(members, key=order.__getitem__)
        classes.add_node(values[0], values=tuple(values))
        owner.update(dict.fromkeys(values, values[0]))
    for source, node in rescales:
        _, forward, backward = node.args
        classes.add_edge(
            owner[source], owner[node.name], name=node.name, forward=forward, backward=backward
        )
    return classes
