"""Gradients at any scale: a graph with casts, whose casts are told how large gradients arrive.

    y = cast(x, '', 'e5m2', …)   ─►   y, token = cast.watched(x, '', 'e5m2', …)
    return y                     ─►   return arrive(y, [join([token])], unit of the gradient of y)

The second form is for casts to formats that hold fewer octaves than the model's own type. Their
forward pass, and gradients apart from their rounding, are those of the first. Casts are joined that
the same outputs are made of, and no output is tied to a cast that it is not made of: a backward
pass from it reaches the parameters that it reached, and no more.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from unitify.capture.whole import Capture
from unitify.formats.table import FORMATS, FP32
from unitify.operations.laws import is_complex, is_scalable
from unitify.operations.schema import named_arguments, nodes_of
from unitify.plan.scale_plan import ScalePlan

ARRIVE = torch.ops.unitify.arrive.default
JOIN = torch.ops.unitify.join.default
_WATCHED = {
    torch.ops.unitify.cast.default: torch.ops.unitify.cast.watched,
    torch.ops.unitify.fp8_linear.default: torch.ops.unitify.fp8_linear.watched,
}
_PLAIN = {watched: plain for plain, watched in _WATCHED.items()}


def watched(graph: fx.Graph, capture: Capture, plan: ScalePlan) -> fx.Graph:
    """``graph``, which ``plan`` made of ``capture``, with watched casts of gradients.

    As it is where no gradient is cast to a narrow range.
    """
    (end,) = (n for n in graph.nodes if n.op == "output")
    units = _units(end, capture, plan)
    groups = _groups(graph, units)
    if not groups:
        return graph
    made = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    tokens: dict[fx.Node, fx.Node] = {}
    taken = {node.name for node in graph.nodes}

    def insert(name: str, target: Any, *arguments: Any) -> fx.Node:
        return _named(made.call_function(target, arguments), name, taken)

    casts = {cast for members in groups.values() for cast in members}
    for node in graph.nodes:
        if node is end:
            continue
        placed[node] = copied = made.node_copy(node, lambda n: placed[n])
        if node in casts:
            copied.target = _WATCHED[node.target]
            _named(copied, f"{node.name}_watched", taken)
            placed[node] = made.call_function(operator.getitem, (copied, 0))
            placed[node].meta = dict(node.meta)
            tokens[node] = insert(f"{node.name}_token", operator.getitem, copied, 1)
        placed[node].name = node.name
    joined = {
        outputs: insert("join", JOIN, [tokens[cast] for cast in members])
        for outputs, members in groups.items()
    }
    for node, unit in units.items():
        own = [token for outputs, token in joined.items() if node in outputs]
        if own:
            arrived = insert(f"{node.name}_out", ARRIVE, placed[node], own, unit)
            arrived.meta = dict(node.meta)
            placed[node] = arrived
    made.output(fx.node.map_arg(end.args[0], placed.__getitem__))
    return made


def unwatched(graph: fx.Graph) -> fx.Graph:
    """The graph that ``watched`` made ``graph`` of, node by node; any other as it is."""
    if not any(node.target is ARRIVE for node in graph.nodes):
        return graph
    made = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.op == "output":
            made.output(fx.node.map_arg(source, placed.__getitem__))
        elif node.target is ARRIVE:
            placed[node] = placed[source]
        elif node.target is operator.getitem and source.target in _PLAIN:
            if node.args[1] == 0:
                placed[node] = placed[source]
                placed[node].name = node.name
                placed[node].meta = dict(node.meta)
        elif node.target is not JOIN:
            placed[node] = copied = made.node_copy(node, placed.__getitem__)
            copied.target = _PLAIN.get(node.target, node.target)
            copied.name = node.name
    return made


def _named(node: fx.Node, name: str, taken: set[str]) -> fx.Node:
    """``node`` under a name that no other has; not by ``_rename``, which gives none twice."""
    while name in taken:
        name += "_"
    taken.add(name)
    node.name = name
    return node


def _is_narrow(node: fx.Node) -> bool:
    """Does a node cast gradients to a format of fewer octaves, by a constant scale?"""
    if node.target not in _WATCHED:
        return False
    given = named_arguments(node)
    format = FORMATS.get(given["backward"])
    if format is None or given.get("amax"):
        return False
    return format.max_exponent < FP32.max_exponent


def _groups(graph: fx.Graph, outputs: Iterable[fx.Node]) -> dict[frozenset[fx.Node], list[fx.Node]]:
    """Casts by the outputs that are made of them."""
    ends = {node: frozenset([node]) for node in outputs}
    reached: dict[fx.Node, frozenset[fx.Node]] = {}
    groups: dict[frozenset[fx.Node], list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        own = ends.get(node, frozenset())
        reached[node] = own.union(*(reached[user] for user in node.users))
        if reached[node] and _is_narrow(node):
            groups.setdefault(reached[node], []).append(node)
    return groups


def _units(end: fx.Node, capture: Capture, plan: ScalePlan) -> dict[fx.Node, float]:
    """Outputs that may have a gradient, and the size that the plan assumes of it."""
    (original,) = (n for n in capture.graph.nodes if n.op == "output")
    pairs = zip(nodes_of(end.args[0]), nodes_of(original.args[0]), strict=True)
    return {
        node: plan.unit(value.name).bwd
        for node, value in pairs
        if is_scalable(value) or is_complex(value)
    }
