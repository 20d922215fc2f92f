"""One operation as a graph, on which rows of the rule table are verified.

The sampled operands of a row become parameters (floating) and buffers of a bare module, so that
they can carry scales like the parameters of a model.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from unitify.capture.execution import GraphRunner
from unitify.capture.whole import Capture
from unitify.rulebook.dimensions import is_floating
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.samples import draw_arguments, parse_arguments
from unitify.rulebook.schema import arguments_of, find_operation


@dataclass
class Trial:
    """One operation on drawn operands: ``capture.graph`` calls it and returns its results."""

    capture: Capture
    node: fx.Node
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def floating(self) -> dict[str, Tensor]:
        """The operands that carry scales, by the names of their nodes."""
        return {n: t for n, t in self.tensors.items() if t.is_floating_point()}

    @property
    def carriers(self) -> list[fx.Node]:
        """Every node that the plan has a scale for."""
        nodes = self.capture.graph.nodes
        return [n for n in nodes if is_scalable(n) or holds_tensors(n)]


def overload(operation: str) -> Any:
    """The operation named, say, ``aten.add.Tensor``."""
    found = find_operation(operation)
    assert found is not None, operation
    return found


def drawn(rule: Rule, sample: Mapping[str, Any], seed: int, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the rule's operation, under this seed."""
    generator = torch.Generator().manual_seed(seed)
    return draw_arguments(parse_arguments(sample), generator, dtype)


def tensors_of(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Drawn tensors by their names in the graph of ``call``."""
    found: dict[str, Tensor] = {}
    for name, value in arguments.items():
        items = {f"{name}_{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {}
        for held, item in {name: value, **items}.items():
            if isinstance(item, Tensor):
                found[f"{held}_operand"] = item
    return found


def call(rule: Rule, arguments: Mapping[str, Any], seed: int = 0) -> Trial:
    """A graph of one call of the rule's operation, with results recorded as a capture does."""
    root, graph = nn.Module(), fx.Graph()
    tensors = tensors_of(arguments)

    def hold(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [hold(f"{name}_{i}", item) for i, item in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        target = f"{name}_operand"
        if is_floating(value):
            root.register_parameter(target, nn.Parameter(value, requires_grad=value.requires_grad))
        else:
            root.register_buffer(target, value)
        node = graph.get_attr(target)
        node.meta["val"] = value
        return node

    held = {name: hold(name, value) for name, value in arguments.items()}
    node = _call_function(graph, overload(rule.operation), held)
    torch.default_generator.manual_seed(seed)
    output = graph.output((node,))
    (result,) = GraphRunner(graph, tensors.__getitem__).run()
    node.meta["val"] = result
    if isinstance(result, list | tuple):
        graph.erase_node(output)
        results = [graph.call_function(operator.getitem, (node, i)) for i in range(len(result))]
        for item, value in zip(results, result, strict=True):
            item.meta["val"] = value
        graph.output((results,))
    aliases = {name: name for name, _ in root.named_parameters()}
    capture = Capture(root, graph, call=None, example=(), aliases=aliases)  # type: ignore[arg-type]
    return Trial(capture, node, tensors)


def _call_function(graph: fx.Graph, operation: Any, held: dict[str, Any]) -> fx.Node:
    """A call as export records it: by position up to the last argument given."""
    if not isinstance(operation, OpOverload):
        needed = [name for name, a in arguments_of(operation).items() if a.is_needed]
        others = {name: value for name, value in held.items() if name not in needed}
        return graph.call_function(operation, tuple(held[n] for n in needed), others)
    arguments = operation._schema.arguments
    positional = [a for a in arguments if not a.kwarg_only]
    last = max((i for i, a in enumerate(positional) if a.name in held), default=-1)
    args = tuple(held.get(a.name, a.default_value) for a in positional[: last + 1])
    kwargs = {a.name: held[a.name] for a in arguments if a.kwarg_only and a.name in held}
    return graph.call_function(operation, args, kwargs)


def run(graph: fx.Graph, tensors: Mapping[str, Tensor], seed: int) -> tuple[Any, ...]:
    """The graph's flat results under a fixed seed."""
    torch.default_generator.manual_seed(seed)
    (results,) = GraphRunner(graph, tensors.__getitem__).run()
    return tuple(results) if isinstance(results, list | tuple) else (results,)
