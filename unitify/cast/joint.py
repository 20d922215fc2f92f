"""One scale for what runtimes fuse: the weights of layers with one input, and that input.

Runtimes make one matmul of layers of one module that take the same value, such as q, k and v. A
scale of a tensor is then one for all of them. A recipe with ``joint`` trains with these scales, so
that what is trained is what is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import networkx as nx
from torch import fx

from unitify.part import Part
from unitify.plan.fixed import parameter_of
from unitify.recipe.cast import Cast, Place
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name


def fused(layer: str, operand: fx.Node) -> str:
    """The name of the group of layers with which a runtime fuses ``layer``, which takes this."""
    return f"{layer.rpartition('.')[0]}:{operand.name}"


def joint(part: Part, rules: RuleTable) -> Part:
    """``part`` with the largest scale of a group for all its weights, and for all its inputs."""
    scales: dict[Place, int] = {}
    casts = {cast.place: cast for cast in part.casts() if not cast.is_gradient}
    for group in _groups(part, rules):
        for places in zip(*group, strict=True):
            held = [casts[place] for place in places if place in casts]
            largest = max((part.exponent(cast) for cast in held), default=0)
            scales.update(dict.fromkeys(places, largest))

    def moved(cast: Cast) -> Cast:
        if cast.is_gradient or cast.place not in scales:
            return cast
        return replace(cast, exponent=cast.exponent + scales[cast.place] - part.exponent(cast))

    return part.with_casts(moved)


def _groups(part: Part, rules: RuleTable) -> Iterator[list[tuple[Place, Place]]]:
    """The inputs and weights of layers that are fused, or that are one layer in several calls."""
    graph = nx.Graph()
    cast = {choice.value for choice in part.choices if choice.is_contraction and choice.is_cast}
    for node in part.capture.graph.nodes:
        matmul = rules[operation_name(node)].matmul if node.name in cast else None
        if matmul is None:
            continue
        arguments = named_arguments(node)
        weight, operand = arguments[matmul.right], arguments[matmul.left]
        name = parameter_of(part.capture, weight)
        if name is not None:
            places = (node.name, matmul.left, 0), (node.name, matmul.right, 0)
            graph.add_edge(places, f"weight {name}")
            graph.add_edge(places, f"input {fused(name.rpartition('.')[0], operand)}")
    for group in nx.connected_components(graph):
        yield sorted(places for places in group if isinstance(places, tuple))
