"""Arguments of a graph node by the names of its operation's schema."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch._ops import OpOverload


def operation_name(node: fx.Node) -> str:
    """The name under which the rule table knows an operation, such as ``aten.add.Tensor``."""
    if isinstance(node.target, OpOverload):
        return str(node.target)
    if callable(node.target):
        module = getattr(node.target, "__module__", "") or ""
        name = getattr(node.target, "__name__", str(node.target))
        return f"{module.lstrip('_')}.{name}"
    return str(node.target)


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of a call, defaults included; positions name those without a schema."""
    if not isinstance(node.target, OpOverload):
        return {**{str(i): a for i, a in enumerate(node.args)}, **node.kwargs}
    named: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            named[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            named[argument.name] = node.kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value
    return named


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give the argument ``name`` of a call another value."""
    if isinstance(node.target, OpOverload):
        names = [a.name for a in node.target._schema.arguments]
        position = names.index(name)
    else:
        position = int(name) if name.isdigit() else len(node.args)
    if position < len(node.args):
        args = list(node.args)
        args[position] = value
        node.args = tuple(args)
    else:
        node.kwargs = {**node.kwargs, name: value}


def nodes_of(argument: Any) -> list[fx.Node]:
    """The nodes in an argument: one, those of a list, or none."""
    if isinstance(argument, fx.Node):
        return [argument]
    if isinstance(argument, list | tuple):
        return [n for item in argument for n in nodes_of(item)]
    return []
