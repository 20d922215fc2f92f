"""Writes that cannot become values: which, and why."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from torch import fx

from unitify.capture.aliases import Aliases, History, changes_geometry, without_data
from unitify.capture.kept import keepers
from unitify.capture.views import is_address, unwritable
from unitify.rulebook.dimensions import hint


class Refusals:
    """What is known of a graph before it is rewritten, and what that rules out."""

    def __init__(
        self,
        graph: fx.Graph,
        aliases: Aliases,
        values: AbstractSet[fx.Node],
        changed: AbstractSet[fx.Node],
    ) -> None:
        """``values``: the roots of the memory to rewrite; ``changed``: see ``change_geometries``.

        Raises ``UnitifyError`` (U105) for a change of sizes in place that others would see.
        """
        self.aliases, self.changed = aliases, changed
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if changes_geometry(node) and aliases.root(node.args[0]) in values:
                reason = "it changes the sizes of a tensor that something else shows"
                raise unwritable(node.args[0], str(node.target), reason)
        #: Root → what is kept of its memory, where autograd does not count all writes together.
        self.kept = {root: keepers(aliases, root) for root in values if self._is_divided(root)}
        for root in values:
            for node in aliases.group[root].members:
                self._check_address(node)

    def untouched(self, tensor: fx.Node) -> list[fx.Node]:
        """Views that a write into ``tensor`` does not change, and that autograd counts apart."""
        group = self.aliases.group[tensor]
        owner = self.aliases.owner(tensor)
        if group.root not in self.kept:
            return []
        apart = [n for n in group.members if self.aliases.owner(n) is not owner]
        return [n for n in apart if not overlap(n, tensor)]

    def _check_address(self, node: fx.Node) -> None:
        """A value with a history of its own has other memory than its root, once written."""
        view = self.aliases.view.get(node)
        if view is None or view.call is None or not is_address(view):
            return
        if self.aliases.holder(view.source) is not self.aliases.root(node):
            reason = "it is found by address in another view"
            raise unwritable(node, "an in-place operation", reason)

    def _is_divided(self, root: fx.Node) -> bool:
        return History.OWN in [
            self._history(n) for n in self.aliases.group[root].members if n in self.aliases.view
        ]

    def _history(self, node: fx.Node) -> History:
        try:
            return self.aliases.history(node)
        except Exception as error:
            raise unwritable(node, str(node.target), f"the view fails: {error}") from error

    def check(self, node: fx.Node, tensors: list[fx.Node], read: list[fx.Node]) -> None:
        """May ``node``, which also reads ``read``, write into ``tensors``? Raises U105 if not."""
        group = self.aliases.group
        for tensor in tensors:
            reason = self._reason(node, tensor)
            one_by_one = _is_one_by_one(node)
            shared = [n for n in read if group.get(n) is group[tensor]]
            if any(overlap(n, tensor, one_by_one) for n in shared):
                reason = "the operation reads elements that it has written"
            if reason is not None:
                raise unwritable(tensor, str(node.target), reason)
        if len({group[tensor].root for tensor in tensors}) < len(tensors):
            reason = "the operation writes into the same memory twice"
            raise unwritable(tensors[0], str(node.target), reason)

    def _reason(self, node: fx.Node, tensor: fx.Node) -> str | None:
        group, now = self.aliases.group[tensor], self.position[node]
        if group.unknown is not None:
            return f"{group.unknown.name} shares its memory, but is not a known view of it"
        if any(n in self.changed and self.position[n] < now for n in group.members):
            return "its sizes were changed in place before"
        if _is_overlapping(tensor):
            return "several of its elements are one"
        mine, theirs = tensor.meta["val"].dtype, group.root.meta["val"].dtype
        if mine != theirs and mine.is_floating_point and theirs.is_floating_point:
            return "it reads bits of another type as its own"
        owner = self.aliases.owner(tensor)
        for member, calls in self.kept.get(group.root, {}).items():
            is_kept = any(self.position[c] <= now for c in calls)
            is_apart = self.aliases.owner(member) is not owner
            if is_kept and is_apart and overlap(member, tensor):
                return "autograd keeps its memory, and will not notice"
        return None


def _is_one_by_one(node: fx.Node) -> bool:
    """Does each element that the operation writes depend on those at its own place alone?"""
    is_copy = node.target is torch.ops.aten.copy_.default
    return is_copy or torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]


def _is_overlapping(tensor: fx.Node) -> bool:
    """May two elements of the tensor lie at one address, at the example's sizes?"""
    held = without_data(tensor.meta["val"])
    reach = 0
    for stride, size in sorted(zip(held.stride(), held.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def overlap(a: fx.Node, b: fx.Node, one_by_one: bool = False) -> bool:
    """Do two tensors on one storage share elements, at the example's sizes?

    ``one_by_one``: it does not count if they are the same elements in the same order.
    """
    first, second = (_layout(n) for n in (a, b))
    if one_by_one and first == second:
        return False
    if first[0] != second[0]:
        return True
    marked = torch.zeros(max(_end(first), _end(second)), dtype=torch.bool)
    marked.as_strided(*first[1:]).fill_(True)
    return bool(marked.as_strided(*second[1:]).any())


_Layout = tuple[int, list[int], list[int], int]


def _layout(node: fx.Node) -> _Layout:
    """The size of an element in bytes; sizes, strides and offset, at those of the example."""
    held = node.meta["val"]
    sizes, strides = [hint(s) for s in held.shape], [hint(s) for s in held.stride()]
    return held.element_size(), sizes, strides, hint(held.storage_offset())


def _end(layout: _Layout) -> int:
    _, sizes, strides, offset = layout
    return offset + 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True) if n)
