"""One node of a captured graph as a function of arrays.

Analysis calls it with moments instead of values: a matmul with mean squares, a transpose with
means. Sizes and integer operands are those of the example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from unitify.rulebook.dimensions import hint, shape_of
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.refusal import refusals
from unitify.rulebook.schema import named_arguments


@dataclass(frozen=True)
class Operation:
    """A node whose only unknown arguments are floating tensors.

    ``known``: the others by node (sizes, flags, masks, indices).
    """

    node: fx.Node
    known: Mapping[fx.Node, Any]

    @property
    def operands(self) -> dict[str, Any]:
        """Floating operands by argument name: a node, or a list of nodes."""
        found: dict[str, Any] = {}
        for name, argument in named_arguments(self.node).items():
            if is_scalable(argument):
                found[name] = argument
            elif isinstance(argument, list | tuple) and any(is_scalable(a) for a in argument):
                found[name] = list(argument)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor operand at the example's sizes."""
        return self.shape_of(named_arguments(self.node)[name])

    @staticmethod
    def shape_of(argument: Any) -> tuple[int, ...]:
        """The shape of an argument at the example's sizes; () for a number."""
        return shape_of(argument.meta["val"]) if isinstance(argument, fx.Node) else ()

    @property
    def result_shapes(self) -> list[tuple[int, ...]]:
        """The shape of every tensor in the result, at the example's sizes."""
        value = self.node.meta["val"]
        return [shape_of(v) for v in (value if isinstance(value, list | tuple) else [value])]

    def __call__(self, replaced: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """Run the operation with floating operands replaced by name.

        Raises ``CannotRun`` where the operation does not accept them.
        """
        arguments = {
            name: replaced[name] if name in replaced else self._known(argument)
            for name, argument in named_arguments(self.node).items()
        }
        with refusals():
            return call_by_name(self.node, arguments)

    def number(self, name: str) -> Any:
        """A non-tensor argument as a plain value."""
        return self._known(named_arguments(self.node)[name])

    def _known(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.known.get(argument)
        if isinstance(argument, list | tuple):
            return [self._known(a) for a in argument]
        if isinstance(argument, torch.SymInt):
            return hint(argument)
        if isinstance(argument, torch.device):
            return torch.device("cpu")
        return argument


def call_by_name(node: fx.Node, arguments: Mapping[str, Any]) -> Any:
    """Call the target of ``node`` with arguments by the names in its schema."""
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        named = {k: v for k, v in arguments.items() if k in node.kwargs}
        return target(*(v for k, v in arguments.items() if k not in named), **named)
    positional, keywords = [], {}
    for argument in schema.arguments:
        if argument.kwarg_only:
            keywords[argument.name] = arguments[argument.name]
        else:
            positional.append(arguments[argument.name])
    return target(*positional, **keywords)


def on_cpu(value: Any) -> Any:
    """A copy of a tensor on the CPU, as a graph may write into integers; else ``value`` itself."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
