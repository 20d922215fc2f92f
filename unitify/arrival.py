"""Gradients at any scale: casts of gradients that adapt to the size of the gradients that arrive.

    y = cast(x, '', 'e5m2', …)   ─►   y, token = cast.watched(x, '', 'e5m2', …)
    return y                     ─►   return arrive(y, [join([token])], unit of the gradient of y)

The second form is for casts to formats with fewer octaves than the model's own type. It has the
forward pass of the first form, and its gradients up to their rounding. Casts before the same
outputs are joined. An output is connected only with casts on which it depends, so a backward pass
from it reaches the same parameters as without this.

Where the model computes a loss itself, the gradient that arrives at that output is always one. Then
the size is that of the gradients at the last results of submodules before it, such as the logits
(``loss_starts``).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.boundaries import Named
from unitify.capture.whole import Capture
from unitify.formats.table import FORMATS, FP32
from unitify.plan.scale_plan import ScalePlan
from unitify.rulebook.laws import is_complex, is_number, is_scalable
from unitify.rulebook.schema import named_arguments, nodes_of

ARRIVE = torch.ops.unitify.arrive.default
JOIN = torch.ops.unitify.join.default
RESCALE = torch.ops.unitify.rescale.default
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


def loss_starts(capture: Capture, plan: ScalePlan) -> dict[str, float]:
    """For the losses among the outputs: the values at which gradients are measured, and the units.

    They are the last results of submodules before a loss, other than numbers, behind which there
    are parameters. Units are those of stored values.
    """
    results = {
        leaf.name
        for region in capture.regions.calls
        if len(capture.regions.of(region.path)) == 1
        for leaf in region.result.leaves
        if isinstance(leaf, Named)
    }
    trained: set[fx.Node] = set()
    for node in capture.graph.nodes:
        is_own = node.op == "get_attr" and node.target in capture.aliases
        if is_own or any(n in trained for n in node.all_input_nodes):
            trained.add(node)
    (end,) = (n for n in capture.graph.nodes if n.op == "output")
    pending = [n for n in nodes_of(end.args[0]) if is_number(n)]
    found: dict[str, float] = {}
    passed: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in passed:
            continue
        passed.add(node)
        if node.name in results and is_scalable(node) and not is_number(node):
            found[node.name] = plan.unit(node.name).bwd / plan.values[node.name].bwd
        else:
            pending += [n for n in node.all_input_nodes if n in trained]
    return found


@dataclass(frozen=True)
class TokenGraph:
    """A graph with watched casts, and the token of each cast, by name.

    ``casts``: names of casts, by the ends behind which they are. Ends are the outputs with a unit,
    then the starts of losses, by their indices.
    """

    graph: fx.Graph
    tokens: Mapping[str, fx.Node]
    casts: Mapping[frozenset[int], tuple[str, ...]]

    def returning(self) -> fx.Graph:
        """The graph that returns the tokens after its results, in their order."""
        (end,) = (n for n in self.graph.nodes if n.op == "output")
        end.args = ((*end.args[0], *self.tokens.values()),)  # type: ignore[misc]
        return self.graph


def with_tokens(
    graph: fx.Graph, units: Units, starts: Mapping[str, float] = MappingProxyType({})
) -> TokenGraph:
    """``graph`` with watched casts of gradients, whose tokens are not used yet.

    ``starts``: those of ``loss_starts``.
    """
    (end,) = (n for n in graph.nodes if n.op == "output")
    groups = _groups(graph, _outputs(end, units), _started(graph, starts))
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
    names = {group: tuple(cast.name for cast in members) for group, members in groups.items()}
    return TokenGraph(made, tokens, names)


def watched(
    graph: fx.Graph, units: Units, starts: Mapping[str, float] = MappingProxyType({})
) -> fx.Graph:
    """``graph`` with watched casts of gradients, to which its ends send the size of gradients.

    Unchanged where no gradient is cast to a narrow range. ``starts``: those of ``loss_starts``.
    """
    of = with_tokens(graph, units, starts)
    if not of.casts:
        return graph
    made = of.graph
    (end,) = (n for n in made.nodes if n.op == "output")
    outputs = _outputs(end, units)
    taken = {node.name for node in made.nodes}
    joined: dict[frozenset[int], fx.Node] = {}
    for group, names in of.casts.items():
        tokens = [of.tokens[n] for n in names]
        is_inner = max(group) >= len(outputs)
        with made.inserting_after(max(tokens)) if is_inner else made.inserting_before(end):
            joined[group] = _named(made.call_function(JOIN, (tokens,)), "join", taken)
    nodes = {node.name: node for node in made.nodes}
    inner = {nodes[node.name]: unit for node, unit in _started(graph, starts).items()}
    for position, (node, unit) in enumerate([*outputs.items(), *inner.items()]):
        own = [token for group, token in joined.items() if position in group]
        if not own:
            continue
        is_inner = position >= len(outputs)
        with made.inserting_after(max(node, *own)) if is_inner else made.inserting_before(end):
            arrived = made.call_function(ARRIVE, (node, own, unit))
        _named(arrived, f"{node.name}_out", taken)
        arrived.meta = dict(node.meta)
        for user in list(node.users) if is_inner else [end]:
            if user is not arrived:
                user.replace_input_with(node, arrived)
    return made


def arrived(
    results: Sequence[Any],
    units: Units,
    casts: Mapping[frozenset[int], tuple[str, ...]],
    tokens: Sequence[tuple[str, Tensor]],
    known: Mapping[frozenset[int], Tensor] = MappingProxyType({}),
) -> list[Any]:
    """The flat ``results`` of code with watched casts, passed through ``arrive``.

    ``units``: of each result; None without a gradient. ``tokens``: those of the casts, by name;
    ``known``: those that are joined already.
    """
    joined, found = join_tokens(casts, tokens, known), list(results)
    ends = [(index, unit) for index, unit in enumerate(units) if unit is not None]
    for position, (index, unit) in enumerate(ends):
        found[index] = arrive_at(found[index], position, unit, joined)
    return found


def join_tokens(
    casts: Mapping[frozenset[int], tuple[str, ...]],
    tokens: Sequence[tuple[str, Tensor]],
    known: Mapping[frozenset[int], Tensor] = MappingProxyType({}),
) -> dict[frozenset[int], Tensor]:
    """One token for the casts behind the same ends. ``known``: those that exist already."""
    by_name: dict[str, list[Tensor]] = {}
    for name, token in tokens:
        by_name.setdefault(name, []).append(token)
    found = dict(known)
    for group, names in casts.items():
        own = [token for name in names for token in by_name.get(name, ())]
        if own and group not in found:
            found[group] = JOIN(own)
    return found


def arrive_at(
    result: Any, position: int, unit: float, joined: Mapping[frozenset[int], Tensor]
) -> Any:
    """The end at ``position``, through which all gradients of the casts behind it pass."""
    own = [token for group, token in joined.items() if position in group]
    return ARRIVE(result, own, unit) if own and isinstance(result, Tensor) else result


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


def _groups(
    graph: fx.Graph, outputs: Iterable[fx.Node], starts: Iterable[fx.Node]
) -> dict[frozenset[int], list[fx.Node]]:
    """Casts, by the ends behind which they are. What is behind a start has no end beyond it."""
    order = list(outputs)
    ends = {node: frozenset([position]) for position, node in enumerate(order)}
    inner = {node: frozenset([len(order) + i]) for i, node in enumerate(starts)}
    reached: dict[fx.Node, frozenset[int]] = {}
    groups: dict[frozenset[int], list[fx.Node]] = {}
    for node in reversed(graph.nodes):
        beyond = (reached[user] for user in node.users)
        reached[node] = inner.get(node) or ends.get(node, frozenset()).union(*beyond)
        if reached[node] and _is_narrow(node):
            groups.setdefault(reached[node], []).append(node)
    return groups


def _outputs(end: fx.Node, units: Units) -> dict[fx.Node, float]:
    """Outputs that may have a gradient, and its size in the plan."""
    pairs = zip(nodes_of(end.args[0]), units, strict=True)
    return {node: unit for node, unit in pairs if unit is not None}


def _started(graph: fx.Graph, starts: Mapping[str, float]) -> dict[fx.Node, float]:
    """The nodes of ``starts`` with the casts of their own gradients, in order, and their units.

    A value that is rescaled before it is stored has another unit, unless a cast marks it.
    """
    nodes = {node.name: node for node in graph.nodes}
    found: dict[fx.Node, float] = {}
    for name, unit in starts.items():
        node = nodes.get(name)
        users = list(node.users) if node is not None else []
        if len(users) == 1 and users[0].target is RESCALE:
            node, users = users[0], list(users[0].users)
            node = node if len(users) == 1 and _is_narrow(users[0]) else None
        if len(users) == 1 and _is_narrow(users[0]):
            node = users[0]
        if node is not None:
            found[node] = unit
    return found
