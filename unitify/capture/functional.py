"""In-place operations made out-of-place, so that every tensor has one value for good.

Takes a graph as ``torch.export`` captures it for training and rewrites it in place of
its owner, ``capture``. A write through a view is written back into the tensor that it
views, and later uses of other views of that tensor see the new contents. What was
mutated and outlives the call (a buffer, an input) receives its last value at the end.

Integer and boolean tensors keep their in-place operations: they hold no scale.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from unitify.diagnostics import AliasedMutation, UnitifyError

aten = torch.ops.aten


def _invert_permute(base: fx.Node, view: fx.Node) -> tuple[OpOverload, tuple[Any, ...]]:
    dims: Any = view.args[1]
    order = [d % len(dims) for d in dims]
    return aten.permute.default, ([order.index(i) for i in range(len(order))],)


def _same_arguments(operation: OpOverload) -> Callable[..., tuple[OpOverload, tuple[Any, ...]]]:
    return lambda base, view: (operation, tuple(view.args[1:]))


#: How the contents of a view go back to the shape of its base (the same elements, reordered).
_REORDERED: dict[OpOverload, Callable[..., tuple[OpOverload, tuple[Any, ...]]]] = {
    aten.transpose.int: _same_arguments(aten.transpose.int),
    aten.t.default: _same_arguments(aten.t.default),
    aten.permute.default: _invert_permute,
}
#: Views that show a part of their base, and the operation that writes the part back.
_PART: dict[OpOverload, OpOverload] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}
_RESHAPED = {
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
}
_SAME = {
    aten.detach.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.view_as.default,
    aten.lift_fresh_copy.default,
}
#: Memory as it was found, and the same with something in it.
_UNINITIALISED: dict[OpOverload, OpOverload] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
    aten.new_empty.default: aten.new_zeros.default,
}


def remove_mutation(graph: fx.Graph) -> None:
    """Rewrite every in-place operation on floating tensors of ``graph`` out of place.

    Raises ``UnitifyError`` (U105) for a write through a view that cannot be written back.
    """
    _fill_with_zeros(graph)
    _Rewriter(graph).run()


def _fill_with_zeros(graph: fx.Graph) -> None:
    """Exchange what was never written for zeros: it would be taken for a value, and is any."""
    for node in graph.nodes:
        if node.target in _UNINITIALISED and _is_floating(node):
            known = {a.name for a in _UNINITIALISED[node.target]._schema.arguments}
            kwargs = {name: value for name, value in node.kwargs.items() if name in known}
            dropped = node.kwargs.keys() - known
            if all(node.kwargs[n] in (None, torch.contiguous_format) for n in dropped):
                node.target, node.kwargs = _UNINITIALISED[node.target], kwargs


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def written_argument(node: fx.Node) -> fx.Node | None:
    """The tensor that ``node`` writes into, or None for an operation that writes nothing."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = (
                node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            )
            return value if isinstance(value, fx.Node) else None
    return None


def functional_counterpart(operation: OpOverload) -> OpOverload | None:
    """``aten.relu_.default`` → ``aten.relu.default``, ``aten.div.out`` → ``aten.div.Tensor``.

    None where there is no such operation.
    """
    namespace, name = operation._schema.name.split("::")
    library = getattr(torch.ops, namespace)
    if name.endswith("_"):
        packet = getattr(library, name[:-1], None)
        return getattr(packet, operation._overloadname, None) if packet is not None else None
    packet = getattr(library, name)
    wanted = [(a.name, str(a.type)) for a in operation._schema.arguments if not a.is_out]
    for overload in packet.overloads():
        found: OpOverload = getattr(packet, overload)
        if [(a.name, str(a.type)) for a in found._schema.arguments] == wanted:
            return found
    return None


class _Rewriter:
    """State of one pass: what holds each tensor's current contents, and who views whom."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.contents: dict[fx.Node, fx.Node] = {}
        self.holders: dict[fx.Node, fx.Node] = {}
        self.base: dict[fx.Node, fx.Node] = {}
        self.version: dict[fx.Node, int] = {}
        self.seen: dict[fx.Node, int] = {}
        self.same: dict[fx.Node, fx.Node] = {}
        self.mutated: dict[fx.Node, None] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "output":
                self._write_back_at_end(node)
                node.args = fx.node.map_arg(node.args, self._read)
                continue
            target = written_argument(node)
            if target is not None and _is_floating(target):
                self._replace(node, self._tensor(target))
                continue
            self._redirect(node)
            self._note_view(node)
        self._erase_dead_writes()

    # A node that an in-place operation returned stands for the tensor that was written.
    def _tensor(self, node: fx.Node) -> fx.Node:
        while node in self.same:
            node = self.same[node]
        return node

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.base:
            node = self.base[node]
        return node

    def _redirect(self, node: fx.Node) -> None:
        with self.graph.inserting_before(node):
            node.args = fx.node.map_arg(node.args, self._read)
            node.kwargs = fx.node.map_arg(node.kwargs, self._read)

    def _read(self, node: fx.Node) -> fx.Node:
        """The node that holds the contents of ``node`` now (re-viewed if its base changed)."""
        node = self._tensor(node)
        chain = [node]
        while chain[-1] in self.base:
            chain.append(self.base[chain[-1]])
        current = self.version.get(chain[-1], 0)
        for view in reversed(chain[:-1]):
            if self.seen.get(view, 0) != current:
                holder = self.base[view]
                args = (self.contents.get(holder, holder), *view.args[1:])
                self.contents[view] = self._call(view.target, args, view, dict(view.kwargs))
                self.seen[view] = current
        return self.contents.get(node, node)

    def _call(
        self,
        target: Any,
        args: tuple[Any, ...],
        like: fx.Node,
        kwargs: dict[str, Any] | None = None,
    ) -> fx.Node:
        made = self.graph.call_function(target, args, kwargs or {})
        made.meta = dict(like.meta)
        return made

    def _note_view(self, node: fx.Node) -> None:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            return
        aliased = [a for a in node.target._schema.arguments if a.alias_info is not None]
        if not aliased or not node.args or not isinstance(node.args[0], fx.Node):
            return
        source = self._holder_of(node.args[0])
        if _is_floating(node) and _share_storage(node, source):
            self.base[node] = source
            self.seen[node] = self.version.get(self._root(source), 0)

    def _holder_of(self, contents: fx.Node) -> fx.Node:
        """The tensor whose current contents are ``contents``."""
        tensor = self.holders.get(contents)
        return tensor if tensor is not None and self.contents[tensor] is contents else contents

    def _replace(self, node: fx.Node, tensor: fx.Node) -> None:
        with self.graph.inserting_before(node):
            value = self._out_of_place(node, tensor)
            self._store(tensor, value)
            view = tensor
            while view in self.base:
                base = self.base[view]
                value = self._write_into(base, view, value)
                self._store(base, value)
                view = base
        root = view
        self.version[root] = self.version.get(root, 0) + 1
        view = tensor
        while view in self.base:
            self.seen[view] = self.version[root]
            view = self.base[view]
        self.same[node] = tensor

    def _store(self, tensor: fx.Node, value: fx.Node) -> None:
        self.contents[tensor] = value
        self.holders[value] = tensor
        self.mutated[tensor] = None

    def _keep_dtype(self, value: fx.Node, tensor: fx.Node) -> fx.Node:
        dtype = tensor.meta["val"].dtype
        operands = [n.meta.get("val") for n in value.all_input_nodes]
        wider = [
            t for t in operands if isinstance(t, torch.Tensor) and t.dtype != dtype and t.dim()
        ]
        if any(torch.promote_types(t.dtype, dtype) != dtype for t in wider):
            return self._call(aten.to.dtype, (value, dtype), tensor)
        return value

    def _out_of_place(self, node: fx.Node, tensor: fx.Node) -> fx.Node:
        """What the write ``node`` leaves in ``tensor``."""
        operation: Any = node.target
        args = fx.node.map_arg(node.args, self._read)
        kwargs = dict(fx.node.map_arg(node.kwargs, self._read))
        counterpart = functional_counterpart(operation)
        if counterpart is aten.copy.default:
            contents, source = args[0], args[1]
            assert isinstance(contents, fx.Node)
            assert isinstance(source, fx.Node)
            return self._overwritten(tensor, contents, source)
        if counterpart is not None:
            outputs = {a.name for a in operation._schema.arguments if a.is_out}
            kept = {name: value for name, value in kwargs.items() if name not in outputs}
            return self._keep_dtype(self._call(counterpart, args, node, kept), tensor)
        if "val" not in node.meta or not isinstance(node.meta["val"], torch.Tensor):
            raise UnitifyError(
                AliasedMutation(where=node.name, operation=str(operation), view=tensor.name)
            )
        # Nothing else does the same: let it write into a copy that no one else reads.
        contents = self._read(tensor)
        fresh = self._call(aten.clone.default, (contents,), tensor)
        args, kwargs = fx.node.map_arg((args, kwargs), lambda n: fresh if n is contents else n)
        return self._call(operation, args, node, kwargs)

    def _overwritten(self, tensor: fx.Node, contents: fx.Node, source: fx.Node) -> fx.Node:
        """All of ``contents`` exchanged for ``source``: ``aten.copy`` has no derivative."""
        shown, given = tensor.meta["val"], source.meta["val"]
        if given.dtype != shown.dtype:
            source = self._call(aten.to.dtype, (source, shown.dtype), tensor)
            source.meta["val"] = given.to(shown.dtype)
        if shown.dim() == 0:
            return self._call(aten.reshape.default, (source, []), tensor)
        if given.shape != shown.shape:
            source = self._call(aten.expand_as.default, (source, contents), tensor)
            source.meta["val"] = source.meta["val"].to(given.device).expand(shown.shape)
        return self._call(aten.slice_scatter.default, (contents, source), tensor)

    def _write_into(self, base: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
        contents = self.contents.get(base, base)
        target: Any = view.target
        if target in _PART:
            args = (contents, value, *view.args[1:])
            return self._call(_PART[target], args, base, dict(view.kwargs))
        if target is aten.narrow.default:
            dimension, start, length = view.args[1:]
            end = self._sum(start, length)
            args = (contents, value, dimension, start, end)
            return self._call(aten.slice_scatter.default, args, base)
        if target in _REORDERED:
            operation, rest = _REORDERED[target](base, view)
            return self._call(operation, (value, *rest), base)
        if target in _RESHAPED:
            return self._call(aten.view_as.default, (value, base), base)
        if target in _SAME:
            return value
        raise UnitifyError(
            AliasedMutation(where=view.name, operation="an in-place operation", view=str(target))
        )

    def _sum(self, a: Any, b: Any) -> Any:
        if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
            return a + b
        made = self.graph.call_function(operator.add, (a, b))
        values = [n.meta["val"] if isinstance(n, fx.Node) else n for n in (a, b)]
        made.meta = {"val": values[0] + values[1]}
        return made

    def _write_back_at_end(self, output: fx.Node) -> None:
        for tensor in self.mutated:
            if tensor.op not in ("placeholder", "get_attr"):
                continue
            contents = self.contents[tensor]
            if tensor.op == "placeholder":
                self._read_a_copy(tensor)
            with self.graph.inserting_before(output):
                if tensor.op == "get_attr":
                    contents = self._call(aten.detach.default, (contents,), tensor)
                self._call(aten.copy_.default, (tensor, contents), tensor)

    def _read_a_copy(self, tensor: fx.Node) -> None:
        """Let the graph use a copy of an input that it writes into in the end.

        What is kept for the backward pass is then not overwritten. The caller's tensor receives
        its contents with their history.
        """
        with self.graph.inserting_after(tensor):
            copied = self._call(aten.clone.default, (tensor,), tensor)
        tensor.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)

    def _erase_dead_writes(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if node in self.same:
                self.graph.erase_node(node)


def _share_storage(a: fx.Node, b: fx.Node) -> bool:
    first, second = a.meta.get("val"), b.meta.get("val")
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return False
    return bool(first.untyped_storage()._cdata == second.untyped_storage()._cdata)
