"""Operations and their arguments by name, from torch's registry or from a Python function.

An operator has a schema. A Python function has its signature. Arguments without a name there are
named by position.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload


@dataclass(frozen=True)
class Argument:
    """One argument of an operation.

    ``kind``: "tensor", "tensors" (a list), "number", "numbers" (a list), "type" (of elements),
    "other" (text, a device), or "any" (of a Python function).
    ``is_needed``: must a call pass it? ``is_optional``: may it be None?
    """

    name: str
    kind: str
    is_needed: bool
    is_optional: bool


def find_operation(name: str) -> Callable[..., Any] | None:
    """The operation of this name in a graph: an operator, or a function of an imported module."""
    found: Any = torch.ops
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, RuntimeError):
        found = None
    if isinstance(found, OpOverload):
        return found if str(found) == name else None
    module, _, function = name.rpartition(".")
    for spelt in (module, f"_{module}"):
        found = getattr(sys.modules.get(spelt), function, None)
        if inspect.isroutine(found) and not isinstance(found, type) and _name(found) == name:
            return found
    return None


def overloads_of(name: str) -> tuple[str, ...]:
    """Full names of the operators that differ from ``name`` only in the last part."""
    space, _, rest = name.partition(".")
    packet = getattr(getattr(torch.ops, space, None), rest.partition(".")[0], None)
    listed = packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ()
    return tuple(f"{space}.{rest.partition('.')[0]}.{overload}" for overload in listed)


def arguments_of(operation: Callable[..., Any]) -> dict[str, Argument]:
    """The arguments of an operation by name, in order."""
    if isinstance(operation, OpOverload):
        return {a.name: _of_schema(a) for a in operation._schema.arguments}
    found = {}
    for parameter in _parameters(operation):
        needed = parameter.default is parameter.empty
        found[parameter.name] = Argument(parameter.name, "any", needed, not needed)
    return found


_NUMBERS = ("number", "int", "float", "bool", "SymInt", "SymFloat", "SymBool")


def _of_schema(argument: Any) -> Argument:
    kind = str(argument.real_type)
    is_optional = kind.startswith("Optional[")
    bare = kind.removeprefix("Optional[").removesuffix("]") if is_optional else kind
    item = bare.removeprefix("List[").removesuffix("]").removeprefix("Optional[").removesuffix("]")
    if "Tensor" in item:
        found = "tensor" if bare == item else "tensors"
    elif item in _NUMBERS:
        found = "number" if bare == item else "numbers"
    else:
        found = "type" if item == "ScalarType" else "other"
    return Argument(argument.name, found, not argument.has_default_value(), is_optional)


@cache
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """The named parameters of a Python function; none where it has no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))


def _positions(target: Any, count: int) -> list[str]:
    """Names of the first ``count`` positional arguments of a Python function."""
    parameters = _parameters(target) if callable(target) else ()
    named = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    return [named[i] if i < len(named) else str(i) for i in range(count)]


def operation_name(node: fx.Node) -> str:
    """The name of an operation in the rule table, such as ``aten.add.Tensor``."""
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return _name(node.target) if callable(node.target) else str(node.target)


def _name(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "") or ""
    name = getattr(function, "__name__", str(function))
    return f"{module.lstrip('_')}.{name}"


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of a call, with the defaults of its schema."""
    if not isinstance(node.target, OpOverload):
        given = zip(_positions(node.target, len(node.args)), node.args, strict=True)
        return {**dict(given), **node.kwargs}
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
    """Replace the argument ``name`` of a call."""
    if isinstance(node.target, OpOverload):
        names = [a.name for a in node.target._schema.arguments]
        position = names.index(name)
    else:
        names = _positions(node.target, len(node.args))
        position = names.index(name) if name in names else len(node.args)
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


def operand_nodes(node: fx.Node) -> list[tuple[str, int, fx.Node]]:
    """Every node operand as (argument name, index in that argument, node)."""
    return [
        (name, index, operand)
        for name, argument in named_arguments(node).items()
        for index, operand in enumerate(nodes_of(argument))
    ]


def listed(value: Any) -> list[Any]:
    """A value, or those of a list or tuple."""
    return list(value) if isinstance(value, list | tuple) else [value]
