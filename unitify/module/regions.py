"""A submodule's own graph: the part of the whole graph that one call of the submodule computed.

Takes a graph whose values are all true, and a ``Region`` of its recording. Gives the graph of that
region alone, with the submodule's names of attributes. There is none where a call has an effect
besides its result: a value that code outside uses, or a write into another module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from unitify.capture.aliases import written_arguments
from unitify.capture.boundaries import Named, Region, text_of
from unitify.capture.modes import by_mode
from unitify.capture.signature import Leaf
from unitify.plan.fixed import is_handed_back

_SIZE = torch.ops.aten.sym_size.int
_CAST = torch.ops.unitify.cast.default
_UNCENTER = torch.ops.unitify.uncenter.default


class NoPiece(Exception):
    """A region cannot have a graph of its own; the message says why."""


@dataclass(frozen=True)
class Piece:
    """The graph of one region.

    Its placeholders are the leaves of the region's arguments, then ``constants``, which the whole
    graph reads as attributes. ``results``: the value of each result by name, "" for a constant.
    ``computes_sizes``: does it depend on sizes that only the whole graph computes?
    """

    graph: fx.Graph
    leaves: tuple[Leaf, ...]
    constants: tuple[str, ...]
    results: tuple[str, ...]
    computes_sizes: bool

    def text(self) -> str:
        """The graph as text, independent of the names of its values."""
        return "\n".join([text_of(self.graph), str(self.leaves), str(self.constants)])


def piece_of(
    graph: fx.Graph,
    region: Region,
    recorded: frozenset[str],
    own_name: Callable[[str], str | None],
    constants: Collection[str],
) -> Piece:
    """The part of ``graph`` that computes ``region``.

    ``recorded``: the names of all values of the recording. ``own_name``: the submodule's name for
    an attribute of the whole; None where it has none. ``constants``: attributes that ``graph``
    reads and the model does not have.

    Raises ``NoPiece`` where there is none.
    """
    return _Cutter(graph, region, recorded, own_name, constants).piece()


class _Cutter:
    def __init__(
        self,
        graph: fx.Graph,
        region: Region,
        recorded: frozenset[str],
        own_name: Callable[[str], str | None],
        constants: Collection[str],
    ) -> None:
        self.graph, self.region, self.recorded = graph, region, recorded
        self.own_name, self.constants = own_name, constants
        self.nodes: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
        self.made = fx.Graph()
        #: Node of the whole graph → its node here.
        self.placed: dict[fx.Node, fx.Node] = {}
        #: Sizes of arguments by their symbols, and those that are used.
        self.sizes: dict[str, tuple[fx.Node, int]] = {}
        self.measured: dict[fx.Node, tuple[fx.Node, int]] = {}
        self.inside: dict[fx.Node, None] = {}
        self.used: list[str] = []
        self.computes_sizes = False

    def piece(self) -> Piece:
        for i, leaf in enumerate(self.region.given.leaves):
            self._give(self.made.placeholder(f"given_{i}"), leaf)
        tail = self.region.tail
        ends = {n.name: n for n in tail.nodes} if tail is not None else {}
        taken = [n.name for n in ends.values() if n.op == "placeholder"]
        dead = {name for name in ends if name not in taken and name not in self.nodes}
        names = [x.name if isinstance(x, Named) else "" for x in self.region.result.leaves]
        wanted = {
            name: self._outside(name) for name in [*names, *taken] if name and name not in dead
        }
        self._collect(list(wanted.values()))
        self._writes()
        self._check_nothing_escapes(set(wanted.values()))
        for target in self.used:
            holder = self.made.placeholder(f"constant_{target.replace('.', '_')}")
            for node in self.inside:
                if node.op == "get_attr" and node.target == target:
                    self.placed[node] = holder
                    holder.meta = dict(node.meta)
        for node in self.graph.nodes:
            if node in self.inside and node not in self.placed:
                self._place(node)
        made = {name: self.placed[node] for name, node in wanted.items()}
        for node in ends.values():
            if node.op == "call_function":
                made[node.name] = self.made.node_copy(node, lambda n: made[n.name])
        leaves = zip(names, self.region.result.leaves, strict=True)
        self.made.output(tuple(made[name] if name else leaf for name, leaf in leaves))
        return Piece(self.made, self._leaves(), tuple(self.used), tuple(names), self.computes_sizes)

    def _leaves(self) -> tuple[Leaf, ...]:
        """Each flat input, with its argument's name where it is the whole argument."""
        found = self.region.leaves
        whole = len(self.region.arguments) == len(found)
        names = self.region.arguments if whole else [f"input_{i}" for i in range(len(found))]
        return tuple(replace(leaf, name=name) for leaf, name in zip(found, names, strict=True))

    def _give(self, holder: fx.Node, leaf: Any) -> None:
        if not isinstance(leaf, Named) or leaf.name not in self.nodes:
            return  # A constant, or an unused input.
        node = self.nodes[leaf.name]
        holder.meta = dict(node.meta)
        for stand in stands_for(node):
            self.placed.setdefault(stand, holder)
        for dimension, size in enumerate(node.meta["val"].shape):
            self.sizes.setdefault(str(size), (holder, dimension))

    def _outside(self, name: str) -> fx.Node:
        """The node that users outside the region read for a value."""
        if name not in self.nodes:
            raise NoPiece(f"the graph no longer has {name}")
        node = self.nodes[name]
        return node if node in self.placed else stands_for(node)[-1]

    def _collect(self, wanted: list[fx.Node]) -> None:
        """Collect the ancestors of ``wanted``."""
        pending = list(wanted)
        while pending:
            node = pending.pop()
            if node in self.placed or node in self.inside:
                continue
            self.inside[node] = None
            if node.op == "get_attr":
                self._check_attribute(str(node.target))
            elif node.op == "placeholder":
                raise NoPiece(f"it uses {node.name}, which it is not given")
            elif node.name not in self.recorded or node.name in self.region.nodes:
                pending += node.all_input_nodes
            elif isinstance(node.meta.get("val"), torch.SymInt):
                pending += self._size(node)
            else:
                raise NoPiece(f"it uses {node.name}, which it is not given")
            self.computes_sizes |= isinstance(node.meta.get("val"), torch.SymInt)

    def _check_attribute(self, target: str) -> None:
        if target in self.constants:
            if target not in self.used:
                self.used.append(target)
        elif self.own_name(target) is None:
            raise NoPiece(f"it uses {target} of another module")

    def _size(self, node: fx.Node) -> list[fx.Node]:
        """The nodes of a size that code outside computed: a size of an argument, or from such."""
        known = self.sizes.get(str(node.meta["val"]))
        if known is None and node.target is not _SIZE:
            return node.all_input_nodes
        if known is None:
            raise NoPiece(f"it uses the size {node.name}, which no argument has")
        self.measured[node] = known
        return []

    def _writes(self) -> None:
        """Writes into the submodule's own buffers, also those at the end of the whole graph."""
        for node in self.graph.nodes:
            written = written_arguments(node)
            if not written:
                continue
            chain = [node]
            while chain[-1].name not in self.region.nodes and chain[-1] not in self.inside:
                sources = [n for n in chain[-1].all_input_nodes if n not in written]
                if len(sources) != 1 or sources[0].op != "call_function":
                    break
                chain.append(sources[0])
            if chain[-1].name not in self.region.nodes and chain[-1] not in self.inside:
                continue
            for place in written:
                # A write of train mode alone has another place in eval mode.
                buffer = place.args[1] if place.target is by_mode else place
                assert isinstance(buffer, fx.Node)
                if buffer in self.inside and buffer.op == "call_function":
                    continue
                if buffer.op != "get_attr" or self.own_name(str(buffer.target)) is None:
                    raise NoPiece(f"it writes into {buffer.name}")
                self.inside[buffer] = None
            self._collect(chain[-1:])
            self.inside |= dict.fromkeys(chain)
            self._collect([n for link in chain for n in link.all_input_nodes])

    def _check_nothing_escapes(self, results: set[fx.Node]) -> None:
        for name in self.region.nodes:
            node = self.nodes.get(name)
            if node is None or isinstance(node.meta.get("val"), torch.SymInt):
                continue
            if results & set(stands_for(node)) or self._is_given(node):
                continue
            for user in node.users:
                if user not in self.inside and user.name not in self.region.nodes:
                    raise NoPiece(f"code outside uses {name}, which is not its result")

    def _is_given(self, node: fx.Node) -> bool:
        """Is it an argument that an operation returns unchanged? The caller has it, too."""
        while is_handed_back(node) and node not in self.placed:
            node = node.all_input_nodes[0]
        return node in self.placed and node.name not in self.region.nodes

    def _place(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            name = self.own_name(str(node.target))
            assert name is not None
            made = self.made.get_attr(name)
        elif node in self.measured:
            made = self.made.call_function(_SIZE, self.measured[node])
        else:
            made = self.made.node_copy(node, self.placed.__getitem__)
        made.meta = dict(node.meta)
        made.name = node.name
        self.placed[node] = made


def stands_for(node: fx.Node) -> list[fx.Node]:
    """``node`` and the nodes after it that replace it: casts of its gradient, added means.

    Users outside its operation read the last one.
    """
    found = [node]
    while (behind := next((u for u in found[-1].users if _stands(u, found[-1])), None)) is not None:
        found.append(behind)
    return found


def _stands(user: fx.Node, node: fx.Node) -> bool:
    if not user.args or user.args[0] is not node:
        return False
    return user.target is _UNCENTER or (user.target is _CAST and bool(user.args[2]))
