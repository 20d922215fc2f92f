"""Programs of views and writes drawn at random, in place and as the pass makes them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from program import Builder, Draw
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from unitify.capture.functional import remove_mutation

aten = torch.ops.aten
Step = tuple[Any, tuple[Any, ...]]
T = TypeVar("T")

SHAPES = [(4, 6), (4, 4), (2, 3, 4), (8,), (2, 4, 2)]


class ViewProgram:
    """A graph of in-place operations through views, the module that owns its buffers, inputs."""

    def __init__(self, root: nn.Module, graph: fx.Graph, inputs: list[Tensor]) -> None:
        self.root, self.graph, self.inputs = root, graph, inputs

    def functional(self) -> fx.Graph:
        """The graph without writes. Raises ``UnitifyError``."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        remove_mutation(graph)
        graph.eliminate_dead_code()
        graph.lint()
        return graph

    def run(self, graph: fx.Graph) -> dict[str, Tensor | None]:
        """Everything that a call leaves behind, by name."""
        root = copy.deepcopy(self.root)
        leaves = [x.clone().requires_grad_() for x in self.inputs]
        given = [leaf * 1.0 for leaf in leaves]
        edges = [x.grad_fn for x in given]
        results = fx.GraphModule(root, graph)(*given)
        # Autograd takes a view anew when it is first asked after a write; a graph, as it returns.
        _ = [r.grad_fn for r in results]
        left = {f"output {i}": r for i, r in enumerate(results)}
        # A caller may go on with an input. Where autograd saw no write its gradient is summed
        # outside, too, in an order that is not the graph's.
        written = [x.grad_fn is not edge for x, edge in zip(given, edges, strict=True)]
        used = [*results, *(x for x, is_written in zip(given, written, strict=True) if is_written)]
        left |= {f"input {i}": x for i, x in enumerate(given)}
        loss: Any = 0.0
        for i, value in enumerate(used):
            if value.requires_grad:
                weights = torch.linspace(-1, 2 + i, value.numel()).reshape(value.shape)
                loss = loss + ((value.abs() if value.is_complex() else value) * weights).sum()
        found = {n: v.detach().clone() for n, v in left.items()}
        found |= {f"buffer {n}": b.detach().clone() for n, b in root.named_buffers()}
        if isinstance(loss, Tensor) and not _is_spoilt(loss):
            leaves_by_name = {f"input {i}": x for i, x in enumerate(leaves)}
            for name, leaf in {**dict(root.named_parameters()), **leaves_by_name}.items():
                found[f"gradient of {name}"] = leaf.grad
        return found


def _is_spoilt(loss: Tensor) -> bool:
    """Run the backward pass. Was a value overwritten that it needs (torch's own error)?"""
    try:
        loss.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return True
    return False


class Recorder(Builder):
    """Runs what it records on tensors with data, so that torch refuses what it refuses."""

    def __init__(self, draw: Draw) -> None:
        super().__init__(draw, torch.float32)
        self.tensors: dict[fx.Node, Any] = {}

    def input(self, value: Tensor) -> fx.Node:
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        self.inputs.append(value)
        # As a caller may give it: with a history, so that it can be written.
        return self.hold(node, value.clone().requires_grad_() * 1.0)

    def attribute(self, name: str) -> fx.Node:
        held = getattr(self.root, name)
        return self.hold(self.graph.get_attr(name), held if held.requires_grad else held.clone())

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
        given = fx.node.map_arg((args, kwargs), self.tensors.__getitem__)
        result = operation(*given[0], **given[1])
        return self.hold(self.graph.call_function(operation, args, kwargs), result)

    def hold(self, node: fx.Node, value: Any) -> fx.Node:
        """``value`` for later operations, and what it is now for ``node``."""
        self.tensors[node] = value
        node.meta["val"] = pytree.tree_map_only(Tensor, Tensor.detach, value)
        return node


def one_of(draw: Draw, choices: Sequence[T]) -> T:
    """As ``st.sampled_from`` draws it; a strategy made for each draw takes longer than the draw."""
    return choices[draw(st.integers(0, len(choices) - 1))]


@st.composite
def view_programs(draw: Draw) -> ViewProgram:
    """One to three tensors, and up to nine views and writes."""
    b = Recorder(draw)
    for _ in range(draw(st.integers(1, 3))):
        shape = one_of(draw, SHAPES)
        b.keep(one_of(draw, [_value, _fresh, _input, _buffer, _integers])(b, shape))
    b.root.register_buffer("at", torch.tensor([1, 0]))
    at = b.attribute("at")
    writes = 0
    kept: list[fx.Node] = []
    for _ in range(draw(st.integers(2, 9))):
        kind = one_of(draw, [_view, _view, _write, _write, _read])
        node = kind(b, at)
        writes += node is not None and kind is _write
        if node is not None and kind is not _write:
            b.keep(node)
            kept += [node] if kind is _read else []
    if not writes:
        _write(b, at)
    b.graph.output(tuple(dict.fromkeys([*kept, *b.live])))
    return ViewProgram(b.root, b.graph, b.inputs)


def _value(b: Builder, shape: tuple[int, ...]) -> fx.Node:
    return b.call(aten.mul.Tensor, b.parameter(*shape), 1.5)


def _fresh(b: Builder, shape: tuple[int, ...]) -> fx.Node:
    return b.call(aten.zeros.default, list(shape))


def _input(b: Builder, shape: tuple[int, ...]) -> fx.Node:
    return b.input(b.random(*shape))


def _buffer(b: Builder, shape: tuple[int, ...]) -> fx.Node:
    name = f"held{len(list(b.root.buffers()))}"
    b.root.register_buffer(name, b.random(*shape))
    return b.attribute(name)


def _integers(b: Builder, shape: tuple[int, ...]) -> fx.Node:
    b.root.register_buffer(name := f"held{len(list(b.root.buffers()))}", torch.ones(shape).int())
    return b.attribute(name)


def _tried(b: Builder, operation: Any, *args: Any) -> fx.Node | None:
    """The call, unless torch refuses it."""
    try:
        return b.call(operation, *args)
    except (RuntimeError, LookupError, TypeError, ValueError):
        return None


def _view(b: Recorder, at: fx.Node) -> fx.Node | None:
    node = one_of(b.draw, b.live[::-1])
    operation, args = one_of(b.draw, VIEWS)(b.draw, b.tensors[node])
    made = _tried(b, operation, node, *args)
    if made is None or isinstance(made.meta["val"], Tensor):
        return made
    several = made.meta["val"]
    if not several:
        b.graph.erase_node(made)
        return None
    index = b.draw(st.integers(0, len(several) - 1))
    item = b.graph.call_function(operator.getitem, (made, index))
    return b.hold(item, b.tensors[made][index])


def _read(b: Builder, at: fx.Node) -> fx.Node | None:
    node = one_of(b.draw, b.live[::-1])
    operation, args = one_of(
        b.draw, [(aten.mul.Tensor, (3,)), (aten.neg.default, ()), (aten.sin.default, ())]
    )
    return _tried(b, operation, node, *args)


def _write(b: Builder, at: fx.Node) -> fx.Node | None:
    node = one_of(b.draw, b.live[::-1])
    other = one_of(b.draw, b.live[::-1])
    operation, args = one_of(b.draw, WRITES)(b.draw, node, other, at)
    return _tried(b, operation, *args)


def _dim(draw: Draw, t: Tensor) -> int:
    return draw(st.integers(0, max(t.dim() - 1, 0)))


def _at(draw: Draw, t: Tensor) -> tuple[int, int, int]:
    """A dimension, and a range of it that is not empty."""
    dim = _dim(draw, t)
    size = t.shape[dim] if t.dim() else 1
    start = draw(st.integers(0, max(size - 1, 0)))
    return dim, start, draw(st.integers(start + 1, max(size, start + 1)))


def _select(draw: Draw, t: Tensor) -> Step:
    return aten.select.int, _at(draw, t)[:2]


def _slice(draw: Draw, t: Tensor) -> Step:
    return aten.slice.Tensor, (*_at(draw, t), draw(st.integers(1, 2)))


def _narrow(draw: Draw, t: Tensor) -> Step:
    dim, start, end = _at(draw, t)
    return aten.narrow.default, (dim, start, end - start)


def _parts(operation: Any) -> Callable[[Draw, Tensor], Step]:
    return lambda draw, t: (operation, (2, _dim(draw, t)))


def _sizes(draw: Draw, t: Tensor) -> Step:
    dim, start, _ = _at(draw, t)
    size = t.shape[dim] if t.dim() else 1
    return aten.split_with_sizes.default, ([start, size - start], dim)


def _dims(operation: Any) -> Callable[[Draw, Tensor], Step]:
    return lambda draw, t: (operation, (_dim(draw, t), _dim(draw, t)))


def _one_dim(operation: Any) -> Callable[[Draw, Tensor], Step]:
    return lambda draw, t: (operation, (_dim(draw, t),))


def _plain(operation: Any, *args: Any) -> Callable[[Draw, Tensor], Step]:
    return lambda draw, t: (operation, args)


def _permute(draw: Draw, t: Tensor) -> Step:
    return aten.permute.default, (draw(st.permutations(range(t.dim()))),)


def _unfold(draw: Draw, t: Tensor) -> Step:
    return aten.unfold.default, (_dim(draw, t), draw(st.integers(1, 2)), draw(st.integers(1, 3)))


def _expand(draw: Draw, t: Tensor) -> Step:
    return aten.expand.default, ([draw(st.integers(1, 2)), *t.shape],)


def _strided(draw: Draw, t: Tensor) -> Step:
    step = draw(st.integers(1, 3))
    return aten.as_strided.default, ([2, 2], [2 * step, step], draw(st.integers(0, 1)))


VIEWS: list[Callable[[Draw, Tensor], Step]] = [
    _select, _slice, _narrow, _sizes, _permute, _unfold, _expand, _strided,
    *map(_parts, (
        aten.chunk.default, aten.split.Tensor, aten.tensor_split.sections,
        aten.unsafe_chunk.default, aten.unsafe_split.Tensor,
    )),
    *map(_dims, (
        aten.transpose.int, aten.swapaxes.default, aten.movedim.int, aten.diagonal.default,
    )),
    *map(_one_dim, (aten.unbind.int, aten.unsqueeze.default, aten.squeeze.dim)),
    *map(_plain, (
        aten.detach.default, aten.alias.default, aten.t.default, aten.numpy_T.default,
        aten.mT.default, aten.mH.default, aten.squeeze.default, aten.flatten.using_ints,
        aten.contiguous.default, aten.real.default, aten.imag.default,
        aten.view_as_real.default, aten.view_as_complex.default,
    )),
    _plain(aten.view.default, [-1]), _plain(aten.reshape.default, [-1]),
    _plain(aten.view.default, [2, -1]), _plain(aten.reshape.default, [2, -1]),
    _plain(aten.unflatten.int, 0, [2, -1]), _plain(aten.view.dtype, torch.int32),
    _plain(aten.view.dtype, torch.float32), _plain(aten.to.dtype, torch.float32),
    _plain(aten.hsplit.int, 2), _plain(aten.vsplit.int, 2), _plain(aten.dsplit.int, 2),
]  # fmt: skip

Write = Callable[[Draw, fx.Node, fx.Node, fx.Node], Step]


def _with(operation: Any, *rest: Any) -> Write:
    return lambda draw, node, other, at: (operation, (node, *rest))


def _two(operation: Any) -> Write:
    return lambda draw, node, other, at: (operation, (node, other))


def _put(draw: Draw, node: fx.Node, other: fx.Node, at: fx.Node) -> Step:
    return aten.index_put_.default, (node, [at], other, draw(st.booleans()))


def _several(draw: Draw, node: fx.Node, other: fx.Node, at: fx.Node) -> Step:
    return aten._foreach_mul_.Scalar, ([node, other], 0.5)


WRITES: list[Write] = [
    _put,
    _several,
    _two(aten.add_.Tensor),
    _two(aten.mul_.Tensor),
    _two(aten.copy_.default),
    _two(aten.sub_.Tensor),
    _two(aten.div_.Tensor),
    _with(aten.mul_.Tensor, 2.5),
    _with(aten.add_.Tensor, 1),
    _with(aten.fill_.Scalar, 2),
    _with(aten.clamp_.default, -0.5, 0.5),
    _with(aten.zero_.default),
    _with(aten.neg_.default),
    _with(aten.relu_.default),
    _with(aten.exp_.default),
    _with(aten.tanh_.default),
    _with(aten.unsqueeze_.default, 0),
    _with(aten.t_.default),
]
