"""Residual sums, found from graphs alone: drawn ones, long ones and nested ones."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from unitify.capture.whole import Capture
from unitify.rulebook.residual import Residual, branch_ends, branches, residuals
from unitify.rulebook.rule_table import load_rules
from unitify.scheme.stacks import stacks
from unitify.scheme.structure import structure

aten = torch.ops.aten
RULES = load_rules()
X = torch.randn(2, 4)


class Builder:
    """A graph on values of one shape."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.input = self.place(self.graph.placeholder("x"))
        self.weight = self.place(self.graph.get_attr("weight"))

    def place(self, node: fx.Node) -> fx.Node:
        node.meta["val"] = X
        return node

    def call(self, target: object, *args: object) -> fx.Node:
        return self.place(self.graph.call_function(target, args))

    def linear(self, x: fx.Node) -> fx.Node:
        return self.call(aten.linear.default, x, self.weight)

    def add(self, x: fx.Node, y: fx.Node) -> fx.Node:
        return self.call(aten.add.Tensor, x, y)

    def found(self, result: fx.Node) -> tuple[Residual, ...]:
        self.graph.output((result,))
        return residuals(self.graph, RULES)


@st.composite
def residual_graphs(draw: st.DrawFn) -> tuple[Builder, fx.Node, set[fx.Node], set[fx.Node]]:
    """A trunk of blocks of known kind, its end, its residual sums and its pointwise ones."""
    b = Builder()
    x, expected, pointwise = b.linear(b.input), set(), set()
    for kind in draw(
        st.lists(st.sampled_from(["pre", "post", "two", "sum", "hand", "nested"]), max_size=8)
    ):
        terms = draw(st.permutations([0, 1]))
        if kind == "sum":
            x = b.add(b.linear(x), b.linear(b.call(aten.relu.default, x)))
            continue
        if kind == "hand":
            sides = [x, b.call(aten.pow.Tensor_Scalar, x, 3)]
            x = b.add(*[sides[i] for i in terms])
            pointwise.add(x)
            continue
        inner = b.call(aten.gelu.default, b.linear(x))
        if kind == "nested":
            inner = b.add(inner, b.linear(inner))
            expected.add(inner)
        sides = [x, b.linear(inner)]
        y = b.add(*[sides[i] for i in terms])
        expected.add(y)
        if kind == "two":
            y = b.add(y, b.linear(b.call(aten.tanh.default, x)))
            expected.add(y)
        x = b.call(aten.relu.default, y) if kind == "post" else y
    return b, x, expected, pointwise


@given(residual_graphs())
def test_residual_sums_of_drawn_graphs(
    drawn: tuple[Builder, fx.Node, set[fx.Node], set[fx.Node]],
) -> None:
    b, result, expected, pointwise = drawn
    found = b.found(result)
    assert {r.add for r in found if not r.is_pointwise} == expected
    assert {r.add for r in found if r.is_pointwise} == pointwise
    for residual in found:
        assert {residual.skip, residual.branch} == set(residual.add.all_input_nodes)
    owned = [node for _, inside in branches(b.graph, found) for node in inside]
    assert len(owned) == len(set(owned))


@given(st.data())
def test_a_sum_of_drawn_graphs_is_residual_if_one_term_leads_to_the_other(
    data: st.DataObject,
) -> None:
    """Any directed acyclic graph of sums and products, against reachability."""
    b = Builder()
    nodes = [b.input]
    for _ in range(data.draw(st.integers(1, 14))):
        pick = st.sampled_from(nodes)
        if data.draw(st.booleans()):
            nodes.append(b.linear(data.draw(pick)))
        else:
            nodes.append(b.add(data.draw(pick), data.draw(pick)))
    found = {r.add: r for r in b.found(nodes[-1])}
    before: dict[fx.Node, set[fx.Node]] = {}
    for node in b.graph.nodes:
        before[node] = set(node.all_input_nodes).union(*(before[n] for n in node.all_input_nodes))
    for node in nodes:
        terms = node.all_input_nodes
        if node.target is not aten.add.Tensor or len(terms) != 2:
            assert node not in found
        elif terms[0] in before[terms[1]] or terms[1] in before[terms[0]]:
            assert node in found
        if node in found:
            assert found[node].origin in before[found[node].branch]


def lines(run: Callable[[], object]) -> int:
    """The lines of Python that ``run`` executes: its work, on a machine of any speed."""
    count = 0

    def trace(_frame: object, event: str, _argument: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def chain(length: int) -> tuple[fx.Node, Builder]:
    b = Builder()
    x = b.linear(b.input)
    for _ in range(length):
        x = b.call(aten.relu.default, x)
    return b.add(x, b.linear(x)), b


def diamonds(count: int) -> tuple[fx.Node, Builder]:
    b = Builder()
    x = b.linear(b.input)
    for _ in range(count):
        x = b.add(b.linear(x), b.linear(x))
    return b.add(b.linear(b.input), x), b


def skips_from_the_start(count: int) -> tuple[fx.Node, Builder]:
    """Every sum takes the first value again, as in a dense net."""
    b = Builder()
    x = first = b.linear(b.input)
    for _ in range(count):
        x = b.add(b.linear(x), first)
    return x, b


def pointwise_diamonds(count: int) -> tuple[fx.Node, Builder]:
    """Values that meet themselves again and again, without a product."""
    b = Builder()
    x = b.linear(b.input)
    for _ in range(count):
        x = b.add(b.call(aten.relu.default, x), b.call(aten.tanh.default, x))
    return x, b


GRAPHS = (chain, diamonds, pointwise_diamonds, skips_from_the_start)


@pytest.mark.parametrize("graph", GRAPHS)
def test_long_graphs_take_linear_time(graph: Callable[[int], tuple[fx.Node, Builder]]) -> None:
    def work(size: int) -> int:
        result, b = graph(size)
        b.graph.output((result,))

        def found() -> None:
            list(branches(b.graph, residuals(b.graph, RULES)))
            branch_ends(b.graph, RULES)

        return lines(found)

    assert work(200) < 2.2 * work(100)


@pytest.mark.parametrize("graph", GRAPHS)
def test_reading_a_long_graph_takes_linear_time(
    graph: Callable[[int], tuple[fx.Node, Builder]],
) -> None:
    """What a scheme rests on, found in one pass each."""

    def read(size: int) -> tuple[Capture, Builder]:
        result, b = graph(size)
        b.graph.output((result,))
        root = nn.Module()
        root.register_parameter("weight", nn.Parameter(torch.randn(4, 4)))
        return Capture(root, b.graph, None, (X,), {"weight": "weight"}), b  # type: ignore[arg-type]

    def work(size: int) -> int:
        captured, b = read(size)
        return lines(lambda: stacks(b.graph, structure(captured, RULES)))

    assert work(200) < 2.2 * work(100)
    captured, b = read(500)
    found = stacks(b.graph, structure(captured, RULES))
    expected = {chain: 1, diamonds: 0, pointwise_diamonds: 0, skips_from_the_start: 500}
    assert sum(len(stack.sums) for stack in found) == expected[graph]
