"""Gradients at any scale: casts of gradients that adapt to the size of the gradients that arrive.

    y = cast(x, '', 'e5m2', …)   ─►   y, token = cast.watched(x, '', 'e5m2', …)
    return y                     ─►   return arrive(y, [join([token])], unit of the gradient of y)

The second form is for casts to formats with fewer octaves than the model's own type. It has the
forward pass of the first form, and its gradients up to their rounding. Casts before the same
outputs are joined. An output is connected only with casts on which it depends, so a backward pass
from it reaches the same parameters as without this.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.formats.table import FORMATS, FP32
from unitify.plan.scale_plan import ScalePlan
from unitify.rulebook.laws import is_complex, is_scalable
from unitify.rulebook.schema import named_arguments, nodes_of

ARRIVE = torch.ops.unitify.arrive.default
JOIN = torch.ops.unitify.join.default
_WATCHED = {
    torch.ops.unitify.cast.default: torch.ops.unitify.cast.watched,
    torch.ops.unitify.fp8_linear.default: torch.ops.unitify.fp8_linear.watched,
}
_PLAIN = {watched: plain for plain, watched in _WATCHED.items()}

#: For each output that is a value: the size of its gradient in the plan; None without a gradient.
Units = Sequence[float | None]


def units_of(capture: Capture, plan: ScalePlan) -> Units:
    """The units of the outputs of a whole graph."""
    (end,) = (n for n in capture.graph.nodes if n.op == "output")
    return [unit_of(value, plan) for value in nodes_of(end.args[0])]


def unit_of(value: fx.Node, plan: ScalePlan) -> float | None:
    """The size of a value's gradient in the plan; None where it can have no gradient."""
    return plan.unit(value.name).bwd if is_scalable(value) or is_complex(value) else None


@dataclass(frozen=True)
class TokenGraph:
    """A graph with watched casts, and the token of each cast, by name.

    ``casts``: names of casts, by the outputs that depend on them (indices among outputs with a
    unit).
    """

    graph: fx.Graph
    tokens: Mapping[str, fx.Node]
    casts: Mapping[frozenset[int], tuple[str, ...]]

    def returning(self) -> fx.Graph:
        """The graph that returns the tokens after its results, in their order."""
        (end,) = (n for n in self.graph.nodes if n.op == "output")
        end.args = ((*end.args[0], *self.tokens.values()),)  # type: ignore[misc]
        return self.graph


def with_tokens(graph: fx.Graph, units: Units) -> TokenGraph:
    """``graph`` with watched casts of gradients, whose tokens are not used yet."""
    (end,) = (n for n in graph.nodes if n.op == "output")
    outputs = _outputs(end, units)
    groups = _groups(graph, outputs)
    made = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    tokens: dict[str, fx.Node] = {}
    taken = {node.name for node in graph.nodes}
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
            token = made.call_function(operator.getitem, (copied, 1))
            tokens[node.name] = _named(token, f"{node.name}_token", taken)
        placed[node].name = node.name
    made.output(fx.node.map_arg(end.args[0], placed.__getitem__))
    order = list(outputs)
    names = {
        frozenset(map(order.index, group)): tuple(cast.name for cast in members)
        for group, members in groups.items()
    }
    return TokenGraph(made, tokens, names)


def watched(graph: fx.Graph, units: Units) -> fx.Graph:
    """``graph`` with watched casts of gradients, to which its outputs send the size of gradients.

    Unchanged where no gradient is cast to a narrow range.
    """
    of = with_tokens(graph, units)
    if not of.casts:
        return graph
    made = of.graph
    (end,) = (n for n in made.nodes if n.op == "output")
    outputs = _outputs(end, units)
    taken = {node.name for node in made.nodes}
    placed: dict[fx.Node, fx.Node] = {}
    with made.inserting_before(end):
        joined = {
            group: _named(made.call_function(JOIN, ([of.tokens[n] for n in names],)), "join", taken)
            for group, names in of.casts.items()
        }
        for position, (node, unit) in enumerate(outputs.items()):
            own = [token for group, token in joined.items() if position in group]
            if own:
                arrived = made.call_function(ARRIVE, (node, own, unit))
                placed[node] = _named(arrived, f"{node.name}_out", taken)
                arrived.meta = dict(node.meta)
    end.args = fx.node.map_arg(end.args, lambda n: placed.get(n, n))
    return made


def arrived(
    results: Sequence[Any],
    units: Units,
    casts: Mapping[frozenset[int], tuple[str, ...]],
    tokens: Sequence[tuple[str, Tensor]],
) -> list[Any]:
    """The flat ``results`` of code with watched casts, passed through ``arrive``.

    ``units``: of each result; None without a gradient. ``tokens``: those of the casts, by name.
    """
    found = list(results)
    by_name: dict[str, list[Tensor]] = {}
    for name, token in tokens:
        by_name.setdefault(name, []).append(token)
    joined = {
        group: JOIN(own)
        for group, names in casts.items()
        if (own := [token for name in names for token in by_name.get(name, ())])
    }
    indices = [i for i, unit in enumerate(units) if unit is not None]
    for position, index in enumerate(indices):
        own = [token for group, token in joined.items() if position in group]
        if own and isinstance(found[index], Tensor):
            found[index] = ARRIVE(found[index], own, units[index])
    return found


def is_watched(graph: fx.Graph) -> bool:
    """Do the casts of a graph get the size of arriving gradients?"""
    return any(node.target is ARRIVE for node in graph.nodes)


def unwatched(graph: fx.Graph) -> fx.Graph:
    """The graph from which ``watched`` made ``graph``; any other graph unchanged."""
    if not is_watched(graph):
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
    """``node`` under a unique name. ``_rename`` would also avoid names of removed nodes."""
    while name in taken:
        name += "_"
    taken.add(name)
    node.name = name
    return node


def _is_narrow(node: fx.Node) -> bool:
    """Does the node cast gradients to a format of fewer octaves, by a constant scale?"""
    if node.target not in _WATCHED:
        return False
    given = named_arguments(node)
    format = FORMATS.get(given["backward"])
    if format is None or given.get("amax"):
        return False
    return format.max_exponent < FP32.max_exponent


def _groups(graph: fx.Graph, outputs: Iterable[fx.Node]) -> dict[frozenset[fx.Node], list[fx.Node]]:
    """Casts, by the outputs that depend on them."""
    ends = {node: frozenset([node]) for node in outputs}
    reached: dict[fx.Node, frozenset[fx.Node]] = {}
    groups: dict[frozenset[fx.Node], list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        own = ends.get(node, frozenset())
        reached[node] = own.union(*(reached[user] for user in node.users))
        if reached[node] and _is_narrow(node):
            groups.setdefault(reached[node], []).append(node)
    return groups


def _outputs(end: fx.Node, units: Units) -> dict[fx.Node, float]:
    """Outputs that may have a gradient, and its size in the plan."""
    pairs = zip(nodes_of(end.args[0]), units, strict=True)
    return {node: unit for node, unit in pairs if unit is not None}
