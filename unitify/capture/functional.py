"""Replaces in-place operations by out-of-place ones, so that every value is written once.

Takes a graph as ``torch.export`` captures it for training, and rewrites it. A write through a view
becomes a new value of the viewed tensor (``unitify::written``). Later uses of other views are taken
of the new value, each where autograd would take it again. A tensor that was written and outlives
the call (a buffer, an input) receives its last value at the end.

Integer and boolean tensors keep their in-place operations, because they have no scale.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from unitify.capture.aliases import (
    Aliases,
    History,
    read_arguments,
    returns_writes_alone,
    run_without_data,
    without_data,
    written_arguments,
    written_slots,
)
from unitify.capture.boundaries import Marks
from unitify.capture.counterparts import (
    change_geometries,
    functional_counterpart,
    outputs,
)
from unitify.capture.derivatives import derives_alike
from unitify.capture.refusals import Refusals
from unitify.capture.uninitialized import fill_with_zeros
from unitify.capture.views import (
    WRITTEN,
    Chain,
    call,
    is_address,
    replay,
    unwritable,
    write,
)
from unitify.rulebook.dimensions import is_floating

aten = torch.ops.aten


def remove_mutation(graph: fx.Graph, marks: Marks | None = None) -> None:
    """Rewrite every in-place operation on floating tensors of ``graph`` out of place.

    ``marks``: the contents of the boundaries in ``graph``, which are updated.

    Raises ``UnitifyError`` (U105) for a write whose effect on other values is not known.
    """
    fill_with_zeros(graph)
    changed = change_geometries(graph)
    if any(written_arguments(node) for node in graph.nodes):
        _Rewriter(graph, changed, marks or Marks(graph)).run()


class _Rewriter:
    """The state of one pass: which node holds each tensor's present contents."""

    def __init__(self, graph: fx.Graph, changed: set[fx.Node], marks: Marks) -> None:
        self.graph, self.marks = graph, marks
        self.aliases = Aliases(graph)
        #: Roots, and values with a history of their own → what they hold now.
        self.contents: dict[fx.Node, fx.Node] = {}
        #: Root → its values with a history of their own.
        self.own: dict[fx.Node, list[fx.Node]] = {}
        #: Number of writes so far. Root → its last write; value → the last write that it includes.
        self.clock = 0
        self.written: dict[fx.Node, int] = {}
        #: The same, by the value for which autograd counts writes.
        self.counted: dict[fx.Node, int] = {}
        self.seen: dict[fx.Node, int] = {}
        #: View → the node that last stood for it.
        self.shown: dict[fx.Node, fx.Node] = {}
        #: Values that replace others: a returned operand, a tensor whose sizes were changed.
        self.same: dict[fx.Node, fx.Node] = {}
        #: In-place operations that were removed.
        self.gone: dict[fx.Node, None] = {}
        #: Roots that were written where autograd sees it.
        self.tracked: set[fx.Node] = set()
        self.values = self.aliases.written_as_values(graph)
        self.refusals = Refusals(graph, self.aliases, self.values, changed)

    def run(self) -> None:
        for node in list(self.graph.nodes):
            written = written_arguments(node)
            if self.marks.passes(node, self._held):
                continue
            if node.op == "output":
                self._end(node)
            elif any(self.aliases.root(tensor) in self.values for tensor in written):
                with self.graph.inserting_before(node):
                    self._replace(node)
            elif self._is_returned(node):
                self._stand_for(node)
                self.gone[node] = None
            else:
                self._redirect(node)
                self._begin(node)
        for node in reversed(self.gone):
            self.graph.erase_node(node)

    def _is_returned(self, node: fx.Node) -> bool:
        """Is ``node`` one of several operands that an operation in place returns?"""
        view = self.aliases.view.get(node)
        return view is not None and view.call is None and self.aliases.root(node) in self.values

    def _redirect(self, node: fx.Node) -> None:
        noticed = self._is_recorded(node)

        def read(operand: fx.Node) -> fx.Node:
            return self._read(operand, noticed)

        with self.graph.inserting_before(node):
            node.args = fx.node.map_arg(node.args, read)
            node.kwargs = fx.node.map_arg(node.kwargs, read)

    def _is_recorded(self, node: fx.Node) -> bool:
        """Does autograd look at the operands of ``node``, and take their views again for it?"""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return True
        group = self.aliases.group[node]
        is_view = group.root in self.values and node is not group.root
        is_cut = is_view and self.aliases.history(node) is History.NONE
        return is_floating(value) and not is_cut

    def _begin(self, node: fx.Node) -> None:
        """Note a value of the recording."""
        self.seen[node] = self.clock
        group = self.aliases.group.get(node)
        if group is None or group.root not in self.values or node is group.root:
            return
        view = self.aliases.view[node]
        assert view.call is not None
        self.seen[node] = self.seen[view.call]
        self.shown[node] = node
        history = self.aliases.history(node)
        if history is History.SELF:
            self._stand_for(node)
        elif history is History.OWN:
            self.contents[node] = node
            self.own.setdefault(group.root, []).append(node)

    def _chain(self, node: fx.Node, start: fx.Node | None = None) -> Chain:
        """The views from ``start`` (the root, if None) to ``node``, as autograd repeats them."""
        chain = self.aliases.chain(node, start)
        last = max((i for i, (view, _) in enumerate(chain) if is_address(view)), default=None)
        if last is None:
            return chain
        # An address in the memory of the root, whatever was taken of it in between.
        root, (view, _) = self.aliases.root(node), chain[last]
        is_shared = all(history is History.SHARED for _, history in chain[:last])
        is_given = last == 0 or is_address(view, given=True)
        if start is None and is_shared and is_given and not root.meta["val"].storage_offset():
            return chain[last:]
        raise unwritable(node, "an in-place operation", "it is found by address in another view")

    def _tensor(self, node: fx.Node) -> fx.Node:
        while node in self.same:
            node = self.same[node]
        return node

    def _read(self, node: fx.Node, noticed: bool = True) -> fx.Node:
        """The node that holds what ``node`` holds now: its view is taken again after a write.

        ``noticed``: autograd notices, and the next operation that reads it finds it taken.
        """
        held = self._held(node)
        if held is not None:
            return held
        node = self._tensor(node)
        self._check_read(node)
        if not noticed:
            return self._taken(node)
        self._show(node)
        return self.shown[node]

    def _held(self, node: fx.Node) -> fx.Node | None:
        """The node with the present value of ``node``; None for a view that must be repeated."""
        node = self._tensor(node)
        group = self.aliases.group.get(node)
        if group is None or group.root not in self.written:
            return node
        if node is group.root:
            return self.contents[node]
        return self.shown[node] if self._is_current(node) else None

    def _is_current(self, node: fx.Node) -> bool:
        return self.seen.get(node, -1) >= self.written.get(self.aliases.root(node), 0)

    def _check_read(self, node: fx.Node) -> None:
        """Refuse a view that autograd would not take again after a write that it did not see."""
        owner = self.aliases.owner(node)
        is_old = self.seen[node] >= self.counted.get(owner, 0)
        if is_old and node is not owner and self.aliases.holder(node) is owner:
            reason = "autograd took it before its memory was written, and does not know of that"
            raise unwritable(node, "an in-place operation", reason)

    def _show(self, node: fx.Node) -> None:
        self.shown[node] = self._taken(node)
        self.seen[node] = self.clock

    def _taken(self, node: fx.Node) -> fx.Node:
        """``node``, taken here, where autograd takes views of the written tensor."""
        root, holder = self.aliases.root(node), self.aliases.holder(node)
        if holder in self.own.get(root, ()):
            start = self._own_contents(holder)
            return replay(self.graph, self._chain(node, holder), start)
        return replay(self.graph, self._chain(node), self.contents.get(root, root))

    def _own_contents(self, holder: fx.Node) -> fx.Node:
        """The contents of a value with its own history, whose memory others may have written."""
        root = self.aliases.root(holder)
        if self.seen[holder] < self.written.get(root, 0):
            now = replay(self.graph, self._chain(holder), self.contents[root])
            before = self.contents[holder]
            merged = write(self.graph, before, now, (), holder, untracked=True)
            self.contents[holder] = self.shown[holder] = merged
            self.seen[holder] = self.clock
        return self.contents[holder]

    def _replace(self, node: fx.Node) -> None:
        """Replace an in-place operation by values of the tensors that it writes into."""
        tensors = [self._tensor(n) for n in written_arguments(node)]
        self.refusals.check(node, tensors, [self._tensor(n) for n in read_arguments(node)])
        values = self._values(node, tensors)
        with self.graph.inserting_before(node.next):
            for tensor, (value, fits) in zip(tensors, values, strict=True):
                self._store(tensor, value, fits)
        if node in self.gone and _is_tensor(node):
            self._stand_for(node)

    def _values(self, node: fx.Node, tensors: list[fx.Node]) -> list[tuple[fx.Node, bool]]:
        """What ``node`` leaves in each tensor, and whether it is of the same type and layout."""
        target: Any = node.target
        if target is aten.copy_.default:
            # ``aten.copy`` has no derivative.
            self.gone[node] = None
            return [(self._read(node.args[1]), False)]  # type: ignore[arg-type]
        counterpart = functional_counterpart(target)
        # Complex kernels round differently in place, and they have no scale.
        is_complex = any(tensor.meta["val"].is_complex() for tensor in tensors)
        may_move = returns_writes_alone(target) and not is_complex
        if counterpart is not None and may_move and derives_alike(node, counterpart):
            self.gone[node] = None
            return self._out_of_place(node, counterpart, tensors)
        # Nothing else computes the same: let it write into copies that nothing else reads.
        copies = [self._copy(tensor) for tensor in tensors]
        args, kwargs = self._arguments(node, copies)
        node.args, node.kwargs = args, kwargs
        if _is_tensor(node) and returns_writes_alone(target):
            self._stand_for(node)
            copies = [node]
        wanted = [without_data(tensor.meta["val"]) for tensor in tensors]
        fits = [_same_geometry(tensor.clone(), tensor) for tensor in wanted]
        return list(zip(copies, fits, strict=True))

    def _copy(self, tensor: fx.Node) -> fx.Node:
        return call(self.graph, aten.clone.default, (self._now(tensor),), tensor)

    def _now(self, tensor: fx.Node) -> fx.Node:
        """The tensor that an operation overwrites. Autograd takes its view at the write."""
        root = self.aliases.root(tensor)
        return self.contents.get(root, root) if tensor is root else self._taken(tensor)

    def _out_of_place(
        self, node: fx.Node, counterpart: OpOverload, tensors: list[fx.Node]
    ) -> list[tuple[fx.Node, bool]]:
        args, kwargs = self._arguments(node, [self._now(tensor) for tensor in tensors])
        made = call(self.graph, counterpart, args, node)
        made.kwargs = {n: v for n, v in kwargs.items() if n not in outputs(node)}
        results = [made]
        if isinstance(counterpart._schema.returns[0].type, torch.ListType) or len(tensors) > 1:
            made.meta["val"] = [tensor.meta["val"] for tensor in tensors]
            results = [
                call(self.graph, operator.getitem, (made, i), tensor)
                for i, tensor in enumerate(tensors)
            ]
        found = self._geometries(made, len(results))
        fits = []
        for result, tensor, got in zip(results, tensors, found, strict=True):
            wanted = without_data(tensor.meta["val"])
            if got is not None and got.shape != wanted.shape:
                raise unwritable(tensor, str(node.target), "the result has other sizes")
            if got is not None and got.dtype != wanted.dtype:
                result.meta["val"] = tensor.meta["val"].to(got.dtype)
            fits.append(got is not None and _same_geometry(got, wanted))
        return list(zip(results, fits, strict=True))

    def _geometries(self, made: fx.Node, count: int) -> list[Any]:
        """What ``made`` returns, without data; None where it does not run so."""
        try:
            found = run_without_data(made)
        except Exception:
            return [None] * count
        return [found] if isinstance(found, torch.Tensor) else list(found)

    def _arguments(self, node: fx.Node, written: Iterable[fx.Node]) -> tuple[Any, Any]:
        """The operands of ``node``; those that it writes into, in order, are ``written``."""
        slots, given = {name for name, _ in written_slots(node)}, iter(written)
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]

        def operands(name: str, argument: Any) -> Any:
            new = (lambda _: next(given)) if name in slots else self._read
            return fx.node.map_arg(argument, new)

        args = tuple(operands(name, a) for name, a in zip(names, node.args, strict=False))
        return args, {
            name: operands(name, node.kwargs[name]) for name in names if name in node.kwargs
        }

    def _store(self, tensor: fx.Node, value: fx.Node, fits: bool) -> None:
        """Let ``tensor`` hold ``value``, and everything that shares its memory."""
        root, holder = self.aliases.root(tensor), self.aliases.holder(tensor)
        before, chain = self.contents.get(root, root), self._chain(tensor)
        if holder is root:
            self.tracked.add(root)
            after = value if fits and not chain else write(self.graph, before, value, chain, root)
        else:
            own = self.own.setdefault(root, [])
            if holder not in own:
                self.contents[holder] = replay(self.graph, self._chain(holder), before)
                self.seen[holder] = self.clock
                own.append(holder)
            rest = self._chain(tensor, holder)
            own_after = write(self.graph, self._own_contents(holder), value, rest, holder)
            after = write(self.graph, before, value, chain, root)
        self.marks.writes(root)
        still = [n for n in self.refusals.untouched(tensor) if self._is_current(n)]
        self.clock += 1
        self.contents[root], self.written[root] = after, self.clock
        self.seen |= dict.fromkeys(still, self.clock)
        self.counted[self.aliases.owner(tensor)] = self.clock
        if holder is not root:
            self.contents[holder] = self.shown[holder] = own_after
            self.seen[holder] = self.clock
        if tensor is not root:
            self._show(tensor)

    def _stand_for(self, node: fx.Node) -> None:
        """Let ``node``, which an operation in place returned, be the tensor that was written."""
        self.same[node] = self._tensor(self.aliases.view[node].source)

    def _end(self, output: fx.Node) -> None:
        """Return what the tensors hold now, and write it into those that outlive the call."""
        outliving = [root for root in self.written if root.op in ("placeholder", "get_attr")]

        def read(node: fx.Node) -> fx.Node:
            # What is returned of a caller's tensor is that tensor.
            node = self._tensor(node)
            is_given = node in outliving and node.op == "placeholder" and node in self.tracked
            return node if is_given else self._read(node)

        with self.graph.inserting_before(output):
            output.args = fx.node.map_arg(output.args, read)
        for root in outliving:
            self._read_a_copy(root)
            with self.graph.inserting_before(output):
                kept, contents = root, self.contents[root]
                if root.op == "get_attr":
                    contents = call(self.graph, aten.detach.default, (contents,), root)
                elif root not in self.tracked:
                    kept = call(self.graph, aten.detach.default, (root,), root)
                call(self.graph, aten.copy_.default, (kept, contents), root)

    def _read_a_copy(self, tensor: fx.Node) -> None:
        """Let the graph use a copy of a tensor that it writes into at the end.

        Tensors kept for the backward pass are then not overwritten. The caller's tensor receives
        the last contents with their history.
        """
        users = [user for user in tensor.users if user.op != "output"]
        if all(user.target is WRITTEN and user.args[0] is tensor for user in users):
            return
        with self.graph.inserting_after(tensor):
            copied = call(self.graph, aten.clone.default, (tensor,), tensor)
        tensor.replace_all_uses_with(
            copied, delete_user_cb=lambda user: user is not copied and user.op != "output"
        )


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _same_geometry(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()
