"""Which values of a graph share memory, and by which views each was reached.

A *group* holds the values on one storage. Its first value is the *root*; every other value is a
view of the root through a chain of operations. torch decides: by the storage of a value, and by
whether autograd knows it as a view. No operation is named here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from unitify.rulebook.dimensions import hint, is_floating
from unitify.rulebook.schema import named_arguments, nodes_of


class History(Enum):
    """What autograd knows of a view."""

    #: It is no view, but the very tensor that it was taken of.
    SELF = "self"
    #: A write through it is a write into its base, with gradients.
    SHARED = "shared"
    #: None: a write through it changes its base behind autograd's back.
    NONE = "none"
    #: Its own, which continues that of its base; a write changes the base as with NONE.
    OWN = "own"


@dataclass(frozen=True)
class View:
    """One step: ``call`` taken of ``source``, or its ``index``-th result.

    ``call`` is None where an operation returned what it was given.
    """

    source: fx.Node
    call: fx.Node | None
    index: int | None = None


@dataclass
class AliasGroup:
    """The values on one storage, in the order of the graph."""

    root: fx.Node
    members: list[fx.Node] = field(default_factory=list)
    #: A value on the storage that is no view of another one, as far as the graph says.
    unknown: fx.Node | None = None

    @property
    def is_floating(self) -> bool:
        """Does any view of the memory read it as floating-point (or complex) numbers?"""
        return any(is_floating(n.meta["val"]) for n in self.members)


class Aliases:
    """The groups of a graph, found in one pass."""

    def __init__(self, graph: fx.Graph) -> None:
        self.group: dict[fx.Node, AliasGroup] = {}
        self.view: dict[fx.Node, View] = {}
        #: Storage → the group that last began on it.
        self._latest: dict[int, AliasGroup] = {}
        self._histories: dict[fx.Node, History] = {}
        for node in graph.nodes:
            if isinstance(node.meta.get("val"), torch.Tensor):
                self._add(node)

    def root(self, node: fx.Node) -> fx.Node:
        """The value whose memory ``node`` shows."""
        return self.group[node].root

    def chain(self, node: fx.Node, start: fx.Node | None = None) -> list[tuple[View, History]]:
        """The views that lead to ``node`` from ``start`` (the root, if None), in order."""
        steps: list[tuple[View, History]] = []
        while node is not start and node in self.view:
            view = self.view[node]
            history = self.history(node)
            if view.call is not None and history is not History.SELF:
                steps.append((view, history))
            node = view.source
        return steps[::-1]

    def holder(self, node: fx.Node) -> fx.Node:
        """The value whose history a write through ``node`` joins."""
        while node in self.view and self.history(node) in (History.SELF, History.SHARED):
            node = self.view[node].source
        return node

    def owner(self, node: fx.Node) -> fx.Node:
        """The value at which autograd counts writes, its own and those through its views."""
        holder = self.holder(node)
        while holder in self.view and self.history(holder) is History.NONE:
            holder = self.holder(self.view[holder].source)
        return holder

    def history(self, node: fx.Node) -> History:
        """What autograd knows of a view. Raises what torch raises where it cannot be tried."""
        if node not in self._histories:
            self._histories[node] = _history(node, self.view[node])
        return self._histories[node]

    def written_as_values(self, graph: fx.Graph) -> set[fx.Node]:
        """The roots of all memory whose writes become values; integers are written in place."""
        writes = [written_arguments(node) for node in graph.nodes]
        together = [{self.root(n) for n in nodes} for nodes in writes if nodes]
        found = {root for roots in together for root in roots if self.group[root].is_floating}
        while grown := {r for roots in together if roots & found for r in roots} - found:
            found |= grown
        return found

    def _add(self, node: fx.Node) -> None:
        call: fx.Node = node
        index: int | None = None
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            call, index = node.args[0], cast(int, node.args[1])
        storage = _storage(node)
        shared = [n for n in _tensors(call) if _storage(n) == storage]
        written = written_arguments(call)
        # A constant and what a write into it returns are recorded as two tensors.
        is_operand = len(written) == 1 and call is node and returns_writes_alone(node.target)
        written = written if is_operand else [n for n in written if n in shared]
        if written and not changes_geometry(call):
            self._join(node, View(written[0], None))
        elif shared and isinstance(call.target, OpOverload):
            self._join(node, View(shared[0], call, index))
            if call.args[:1] != (shared[0],):
                self.group[node].unknown = node
        else:
            group = self.group[node] = AliasGroup(node, [node])
            seen = self._latest.get(storage)
            if seen is not None and not isinstance(call.target, OpOverload):
                group.unknown = seen.unknown = node
            self._latest[storage] = group

    def _join(self, node: fx.Node, view: View) -> None:
        self.view[node] = view
        self.group[node] = self.group[view.source]
        self.group[node].members.append(node)


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The tensors that ``node`` writes into."""
    return [n for _, argument in written_slots(node) for n in nodes_of(argument)]


def read_arguments(node: fx.Node) -> list[fx.Node]:
    """The operands of an operation that it does not write into."""
    slots = {name for name, _ in written_slots(node)}
    return [
        n for name, a in named_arguments(node).items() if name not in slots for n in nodes_of(a)
    ]


def written_argument(node: fx.Node) -> fx.Node | None:
    """The one tensor that ``node`` writes into; None if there is none, or more than one."""
    found = written_arguments(node)
    return found[0] if len(found) == 1 else None


def written_slots(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Every argument that ``node`` writes into: its name, and what is given for it."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            positional = position < len(node.args)
            yield (
                argument.name,
                node.args[position] if positional else node.kwargs.get(argument.name),
            )


def returns_writes_alone(operation: Any) -> bool:
    """Does the operation return only tensors that it was given to write into?"""
    infos = [r.alias_info for r in operation._schema.returns]
    return all(info is not None and info.is_write for info in infos)


def changes_geometry(node: fx.Node) -> bool:
    """Does the operation change the sizes or strides of the tensor that it is given?"""
    return torch.Tag.inplace_view in getattr(node.target, "tags", ())


def storages(node: fx.Node) -> set[int]:
    """The storages of a value; of each one, if it is several."""
    held = pytree.tree_leaves(node.meta.get("val"))
    return {
        t.untyped_storage()._cdata
        for t in held
        if isinstance(t, torch.Tensor) and t.layout == torch.strided
    }


def _storage(node: fx.Node) -> int:
    (storage,) = storages(node)
    return storage


def _tensors(node: fx.Node) -> list[fx.Node]:
    found = nodes_of([*node.args, *node.kwargs.values()])
    return [n for n in found if isinstance(n.meta.get("val"), torch.Tensor)]


def _history(node: fx.Node, view: View) -> History:
    """How autograd treats the view: tried on tensors without data, at the example's sizes."""
    held = view.source.meta["val"]
    if view.call is None or changes_geometry(view.call):
        return History.SHARED
    if not is_floating(held):
        return History.NONE if is_floating(node.meta["val"]) else History.SHARED
    leaf = without_data(held).requires_grad_()
    shown = run_without_data(view.call, leaf)
    if view.index is not None:
        shown = shown[view.index]
    if shown is leaf:
        return History.SELF
    if not shown.requires_grad:
        return History.NONE
    return History.SHARED if shown._is_view() else History.OWN


def without_data(value: Any) -> Any:
    """A tensor on the meta device with the geometry of ``value``, at the example's sizes."""
    if not isinstance(value, torch.Tensor):
        return hint(value) if isinstance(value, torch.SymInt) else value
    sizes, strides = [hint(s) for s in value.shape], [hint(s) for s in value.stride()]
    return torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")


def run_without_data(call: fx.Node, *first: torch.Tensor) -> Any:
    """What ``call`` returns on operands without data; ``first`` replaces its first arguments."""
    given = fx.node.map_arg((call.args, call.kwargs), lambda n: without_data(n.meta["val"]))
    args, kwargs = pytree.tree_map_only(torch.device, lambda _: torch.device("meta"), given)
    with torch.enable_grad():
        return call.target(*first, *args[len(first) :], **kwargs)  # type: ignore[operator]
