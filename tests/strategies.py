"""Hypothesis strategies: random graphs of operations, and random scales for their values."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from program import Builder, Draw, Program
from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.plan.fixed import fixed_values, parameter_of
from unitify.plan.scale_plan import CARRIERS, Carrier, Scale, ScalePlan, weights_of
from unitify.rulebook.extremes import extreme_values
from unitify.rulebook.laws import factors, holds_tensors, is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name

aten = torch.ops.aten

#: Sizes are few, so that operands of the same shape are easily found.
SIZES = (4, 6)

Operation = Callable[[Builder], None]
OPERATIONS: list[Operation] = []


def operation(function: Operation) -> Operation:
    OPERATIONS.append(function)
    return function


@operation
def linear(b: Builder) -> None:
    if x := b.pick(dims=1):
        size = b.draw(st.sampled_from(SIZES))
        weight = b.parameter(size, x.meta["val"].shape[-1])
        if b.draw(st.booleans()):
            b.keep(b.call(aten.linear.default, x, weight, b.parameter(size)))
        else:
            b.keep(b.call(aten.linear.default, x, weight))


@operation
def matmul(b: Builder) -> None:
    if (x := b.pick(dims=2)) and (y := b.pick(shape=x.meta["val"].shape)):
        b.keep(b.call(aten.matmul.default, x, b.call(aten.transpose.int, y, -2, -1)))


@operation
def square_matmul(b: Builder) -> None:
    """One value on both sides of a product."""
    squares = [n for n in b.live if n.meta["val"].dim() >= 2 and _is_square(n.meta["val"])]
    if squares:
        x = b.draw(st.sampled_from(squares))
        b.keep(b.call(aten.matmul.default, x, x))


def _is_square(x: Tensor) -> bool:
    return x.shape[-1] == x.shape[-2]


@operation
def arithmetic(b: Builder) -> None:
    """Two values of one shape (often the same value twice)."""
    if (x := b.pick()) and (y := b.pick(shape=x.meta["val"].shape)):
        call = b.draw(st.sampled_from([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor]))
        b.keep(b.call(call, x, y))


@operation
def weighted_sum(b: Builder) -> None:
    if (x := b.pick()) and (y := b.pick(shape=x.meta["val"].shape)):
        alpha = b.draw(st.sampled_from([0.3, 2, -1.7]))
        b.keep(b.call(aten.add.Tensor, x, y, alpha=alpha))


@operation
def broadcast(b: Builder) -> None:
    if x := b.pick(dims=1):
        call = b.draw(st.sampled_from([aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor]))
        b.keep(b.call(call, x, b.parameter(x.meta["val"].shape[-1])))


@operation
def with_number(b: Builder) -> None:
    if x := b.pick():
        call = b.draw(st.sampled_from([aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor]))
        b.keep(b.call(call, x, b.draw(st.sampled_from([0.7, -3, 2.0]))))


_ELEMENTWISE = [
    "relu", "tanh", "sigmoid", "silu", "neg", "abs", "sin", "softplus", "elu", "leaky_relu",
]  # fmt: skip


@operation
def elementwise(b: Builder) -> None:
    if x := b.pick():
        name = b.draw(st.sampled_from(_ELEMENTWISE))
        b.keep(b.call(getattr(aten, name).default, x))


@operation
def gelu(b: Builder) -> None:
    if x := b.pick():
        b.keep(b.call(aten.gelu.default, x, approximate=b.draw(st.sampled_from(["none", "tanh"]))))


@operation
def powers(b: Builder) -> None:
    if x := b.pick():
        b.keep(b.call(aten.pow.Tensor_Scalar, x, b.draw(st.sampled_from([2, 3, 1]))))


@operation
def roots(b: Builder) -> None:
    """sqrt, rsqrt and a quotient by something that is positive."""
    if x := b.pick():
        positive = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, x), 0.5)
        kind = b.draw(st.sampled_from(["sqrt", "rsqrt", "div", "power", "both"]))
        if kind == "div":
            y = b.pick(shape=x.meta["val"].shape)
            b.keep(b.call(aten.div.Tensor, y, positive))
        elif kind == "power":
            b.keep(b.call(aten.pow.Tensor_Scalar, positive, b.draw(st.sampled_from([0.5, -0.5]))))
        elif kind == "both":
            b.keep(b.call(aten.div.Tensor, x, b.call(aten.sqrt.default, positive)))
        else:
            b.keep(b.call(getattr(aten, kind).default, positive))


@operation
def normalize(b: Builder) -> None:
    if x := b.pick(dims=1):
        size = x.meta["val"].shape[-1]
        match b.draw(st.sampled_from(["layer", "bare", "rms"])):
            case "layer":
                weight, bias = b.parameter(size), b.parameter(size)
                b.keep(b.call(aten.layer_norm.default, x, [size], weight, bias, 1e-5))
            case "bare":
                b.keep(b.call(aten.layer_norm.default, x, [size]))
            case "rms":
                b.keep(b.call(aten.rms_norm.default, x, [size], b.parameter(size)))


@operation
def softmax(b: Builder) -> None:
    if x := b.pick(dims=1):
        bounded = b.call(aten.tanh.default, x)
        b.keep(b.call(aten.softmax.int, bounded, b.dimension(x)))


@operation
def masked_softmax(b: Builder) -> None:
    if x := b.pick(dims=1):
        mask = b.call(aten.gt.Scalar, x, 0.8)
        bounded = b.call(aten.tanh.default, x)
        filled = b.call(aten.masked_fill.Scalar, bounded, mask, float("-inf"))
        weights = b.call(aten.softmax.int, filled, -1)
        # A row that is masked whole is NaN in the original, too.
        b.keep(b.call(aten.nan_to_num.default, weights))


@operation
def attention(b: Builder) -> None:
    if q := b.pick(dims=3):
        k, v = b.pick(shape=q.meta["val"].shape), b.pick(shape=q.meta["val"].shape)
        options = b.draw(st.sampled_from([{}, {"is_causal": True}, {"scale": 0.3}]))
        b.keep(b.call(aten.scaled_dot_product_attention.default, q, k, v, **options))


@operation
def reorder(b: Builder) -> None:
    if x := b.pick(dims=2):
        i, j = b.dimension(x), b.dimension(x)
        b.keep(b.call(aten.transpose.int, x, i, j))


@operation
def part(b: Builder) -> None:
    """Views that leave gaps, and gathered copies."""
    if x := b.pick(dims=1):
        dim = b.dimension(x)
        size = x.meta["val"].shape[dim]
        match b.draw(st.sampled_from(["slice", "step", "select", "index", "flip", "roll"])):
            case "slice" if size > 2:
                b.keep(b.call(aten.slice.Tensor, x, dim, 1, size))
            case "step" if size > 2:
                b.keep(b.call(aten.slice.Tensor, x, dim, 0, size, 2))
            case "select":
                b.keep(b.call(aten.select.int, x, dim, size - 1))
            case "index":
                at = torch.tensor([0, size - 1, 0])
                b.keep(b.call(aten.index_select.default, x, dim, b.indices(at)))
            case "flip":
                b.keep(b.call(aten.flip.default, x, [dim]))
            case "roll":
                b.keep(b.call(aten.roll.default, x, [1], [dim]))


@operation
def several(b: Builder) -> None:
    """Operations with more than one result."""
    if x := b.pick(dims=1):
        dim = b.dimension(x)
        size = x.meta["val"].shape[dim]
        match b.draw(st.sampled_from(["split", "chunk", "unbind", "topk", "sort", "max"])):
            case "split":
                made = b.call(aten.split.Tensor, x, max(1, size // 2), dim)
            case "chunk":
                made = b.call(aten.chunk.default, x, 2, dim)
            case "unbind":
                made = b.call(aten.unbind.int, x, dim)
            case "topk":
                made = b.call(aten.topk.default, x, 1, dim)
            case "sort":
                made = b.call(aten.sort.default, x, dim)
            case _:
                made = b.call(aten.max.dim, x, dim)
        for i, value in enumerate(made.meta["val"]):
            if value.is_floating_point():
                b.keep(b.call(operator.getitem, made, i))


@operation
def widen(b: Builder) -> None:
    """Expanded values overlap in memory."""
    if x := b.pick(dims=1):
        shape = list(x.meta["val"].shape)
        if len(shape) < 3:
            dim = b.draw(st.integers(0, len(shape)))
            shape.insert(dim, b.draw(st.sampled_from(SIZES)))
            wide = b.call(aten.expand.default, b.call(aten.unsqueeze.default, x, dim), shape)
            b.keep(wide)


@operation
def join(b: Builder) -> None:
    if (x := b.pick(dims=1)) and (y := b.pick(shape=x.meta["val"].shape)):
        if b.draw(st.booleans()) and x.meta["val"].dim() < 3:
            b.keep(b.call(aten.stack.default, [x, y, x], b.dimension(x)))
        else:
            dim = b.dimension(x)
            whole = b.call(aten.cat.default, [x, y], dim)
            size = x.meta["val"].shape[dim]
            b.keep(b.call(aten.slice.Tensor, whole, dim, 1, size + 1))


@operation
def choose(b: Builder) -> None:
    if (x := b.pick()) and (y := b.pick(shape=x.meta["val"].shape)):
        b.keep(b.call(aten.where.self, b.call(aten.lt.Tensor, x, y), x, y))


@operation
def dropout(b: Builder) -> None:
    if x := b.pick():
        b.keep(b.call(aten.dropout.default, x, 0.25, True))


@operation
def reduce(b: Builder) -> None:
    if x := b.pick(dims=1):
        match b.draw(st.sampled_from(["mean", "sum", "mean_all", "cumsum", "logsumexp", "amax"])):
            case "mean":
                b.keep(b.call(aten.mean.dim, x, [b.dimension(x)], b.draw(st.booleans())))
            case "sum":
                b.keep(b.call(aten.sum.dim_IntList, x, [b.dimension(x)]))
            case "mean_all":
                b.keep(b.call(aten.mean.default, x))
            case "cumsum":
                b.keep(b.call(aten.cumsum.default, x, b.dimension(x)))
            case "logsumexp":
                bounded = b.call(aten.tanh.default, x)
                b.keep(b.call(aten.logsumexp.default, bounded, [b.dimension(x)]))
            case _:
                b.keep(b.call(aten.amax.default, x, [b.dimension(x)]))


@operation
def embedding(b: Builder) -> None:
    tokens = torch.randint(0, 5, (4, 6), generator=b.generator)
    weight = b.parameter(5, b.draw(st.sampled_from(SIZES)))
    b.keep(b.call(aten.embedding.default, weight, b.indices(tokens)))


@operation
def in_place(b: Builder) -> None:
    """A copy that is written to, whole or through a view."""
    if x := b.pick(dims=1):
        copy = b.call(aten.clone.default, x)
        target = copy
        if b.draw(st.booleans()):
            target = b.call(aten.select.int, copy, 0, 0)
        elif copy.meta["val"].dim() >= 2 and b.draw(st.booleans()):
            target = b.call(aten.transpose.int, copy, 0, 1)
        match b.draw(st.sampled_from(["relu_", "mul_", "add_", "fill_"])):
            case "relu_":
                b.call(aten.relu_.default, target)
            case "mul_":
                b.call(aten.mul_.Tensor, target, 0.7)
            case "add_":
                other = b.pick(shape=target.meta["val"].shape)
                b.call(aten.add_.Tensor, target, other if other is not None else 1.5)
            case "fill_" if target is not copy:
                b.call(aten.fill_.Scalar, target, 0.25)
        b.keep(copy)


@operation
def stop(b: Builder) -> None:
    if x := b.pick():
        b.keep(b.call(aten.detach.default, x))


@st.composite
def programs(
    draw: Draw,
    dtypes: tuple[torch.dtype, ...] = (torch.float64,),
    max_steps: int = 14,
) -> Program:
    """A random DAG of operations with shared weights, fan-out and up to three outputs."""
    b = Builder(draw, draw(st.sampled_from(dtypes)))
    b.keep(b.input(b.random(4, 6)), b.input(b.random(4, 6, 6)))
    steps = draw(st.lists(st.sampled_from(OPERATIONS), min_size=3, max_size=max_steps))
    for step in steps:
        step(b)
    outputs = draw(st.integers(1, 3))
    last = [n for n in b.live if n.op == "call_function"][-outputs:] or b.live[:1]
    b.graph.output(tuple(last))
    return Program(b.root, b.graph, tuple(b.inputs))


#: In which units operations receive gradients (``ScalePlan.received``).
carriers: st.SearchStrategy[Carrier] = st.sampled_from(CARRIERS)


def random_plan(
    draw: Draw,
    capture: Capture,
    rules: RuleTable,
    limit: int = 12,
    carrier: Carrier = "narrow",
) -> ScalePlan:
    """Any powers of two for every value and parameter that may have a scale."""
    exponent = st.integers(-limit, limit)
    extreme = extreme_values(capture.graph, rules, capture.example, capture.attribute)
    held = fixed_values(capture)
    forward: dict[fx.Node, int] = {}
    values: dict[str, Scale] = {}
    for node in capture.graph.nodes:
        if not (is_scalable(node) or holds_tensors(node)):
            continue
        fixed = node in held
        forward[node] = 0 if fixed or node in extreme else draw(exponent)
        if holds_tensors(node):
            # Results leave a tuple in the operation's own units, which are not free.
            rule = rules.get(operation_name(node))
            forward[node] = factors(rule, node, lambda n: forward.get(n, 0)).output
        values[node.name] = Scale.of_exponents(forward[node], 0 if fixed else draw(exponent))
    by_target = {
        parameter_of(capture, node): values[node.name]
        for node in capture.graph.nodes
        if node.op == "get_attr" and node.name in values
    }
    parameters = {name: by_target.get(first, Scale()) for name, first in capture.aliases.items()}
    return ScalePlan(values, parameters, weights=weights_of(capture), carrier=carrier)
