"""A model drawn at random: the graph of its operations, its weights and inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from unitify.capture.composite import open_composites
from unitify.capture.functional import remove_mutation
from unitify.capture.recorded_graph import parameter_aliases
from unitify.capture.signature import CallSignature, Leaf
from unitify.capture.whole import Capture

aten = torch.ops.aten
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Program:
    """A random model: its graph as drawn (in-place operations and all), weights and inputs."""

    def __init__(self, root: nn.Module, graph: fx.Graph, inputs: tuple[Tensor, ...]) -> None:
        self.root, self.graph, self.inputs = root, graph, inputs

    def capture(self) -> Capture:
        """What ``unitify.capture`` makes of it, without the seconds that an export takes."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.output(graph.graph_copy(self.graph, copies))
        open_composites(graph)
        remove_mutation(graph)
        graph.eliminate_dead_code()
        graph.lint()
        names = [f"x{i}" for i in range(len(self.inputs))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        results = len(next(n for n in self.graph.nodes if n.op == "output").args[0])
        call = CallSignature(
            inspect.Signature([inspect.Parameter(name, kind) for name in names]),
            tuple(names),
            pytree.tree_structure(dict.fromkeys(names, 0)),
            pytree.tree_structure((0,) * results),
            tuple(
                Leaf(n, tuple(x.shape), x.dtype) for n, x in zip(names, self.inputs, strict=True)
            ),
        )
        return Capture(self.root, graph, call, self.inputs, parameter_aliases(self.root))

    def module(self) -> fx.GraphModule:
        """The model as a user has it, for the real capture."""
        return fx.GraphModule(self.root, self.graph)

    def __repr__(self) -> str:
        shapes = [tuple(x.shape) for x in self.inputs]
        return f"inputs {shapes}, {self.inputs[0].dtype}\n{self.graph}"


class Builder:
    """Records operations and runs them on fake tensors, so that every node knows its shape."""

    def __init__(self, draw: Draw, dtype: torch.dtype) -> None:
        self.draw, self.dtype = draw, dtype
        self.root, self.graph = nn.Module(), fx.Graph()
        self.generator = torch.Generator().manual_seed(0)
        self.mode = FakeTensorMode()
        self.live: list[fx.Node] = []
        self.inputs: list[Tensor] = []
        self.held: dict[tuple[int, ...], list[fx.Node]] = {}

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def input(self, value: Tensor) -> fx.Node:
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        node.meta["val"] = self.mode.from_tensor(value)
        self.inputs.append(value)
        return node

    def parameter(self, *shape: int) -> fx.Node:
        """A new parameter, or (half of the time) one of this shape that is in use already."""
        known = self.held.setdefault(shape, [])
        if known and self.draw(st.booleans()):
            return self.draw(st.sampled_from(known))
        name = f"p{sum(len(v) for v in self.held.values())}"
        self.root.register_parameter(name, nn.Parameter(self.random(*shape)))
        known.append(self.attribute(name))
        return known[-1]

    def indices(self, value: Tensor) -> fx.Node:
        """A buffer of integers."""
        self.root.register_buffer(name := f"at{len(list(self.root.buffers()))}", value)
        return self.attribute(name)

    def attribute(self, name: str) -> fx.Node:
        node = self.graph.get_attr(name)
        node.meta["val"] = self.mode.from_tensor(getattr(self.root, name))
        return node

    def call(self, operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(operation, args, kwargs)
        with self.mode:
            values = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
            node.meta["val"] = operation(*values[0], **values[1])
        return node

    def keep(self, *nodes: fx.Node) -> None:
        self.live.extend(nodes)

    def pick(self, *, dims: int = 0, shape: tuple[int, ...] | None = None) -> fx.Node | None:
        """A live value of this shape or with so many dimensions; None if there is none."""
        found = [
            n
            for n in self.live
            if n.meta["val"].dim() >= dims and (shape is None or n.meta["val"].shape == shape)
        ]
        # Later values first: Hypothesis shrinks towards the front, and graphs stay deep.
        return self.draw(st.sampled_from(found[::-1])) if found else None

    def dimension(self, node: fx.Node) -> int:
        return self.draw(st.integers(0, node.meta["val"].dim() - 1))


def chain(length: int) -> Capture:
    """A graph of so many operations: blocks with a residual sum, one after the other."""
    b = Builder(lambda _: False, torch.float32)
    x = b.input(b.random(4, 6))
    weight = b.parameter(6, 6)
    shape = x.meta["val"]

    def call(operation: Any, *args: Any) -> fx.Node:
        node = b.graph.call_function(operation, args)
        node.meta["val"] = shape
        return node

    while len(b.graph.nodes) < length:
        h = call(aten.relu.default, call(aten.linear.default, x, weight))
        x = call(aten.add.Tensor, x, call(aten.transpose.int, h, 0, 0))
    b.graph.output((x,))
    return Program(b.root, b.graph, tuple(b.inputs)).capture()
