"""Sizes of a node's operands and result as numbers, from which ``dims`` and defaults follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from unitify.rulebook.refusal import CannotRun
from unitify.rulebook.schema import named_arguments


def is_floating(value: Any) -> bool:
    """Is it a tensor of real or complex numbers? Such a tensor can have a gradient."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def hint(size: Any) -> int:
    """A size as a number. A symbolic one has its value in the example."""
    if isinstance(size, int):
        return size
    found = getattr(size.node, "hint", None)
    return int(found) if found is not None else 1


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a (fake) tensor at the example's sizes."""
    return tuple(hint(s) for s in value.shape) if isinstance(value, torch.Tensor) else ()


def symbol_values(node: fx.Node) -> dict[str, float]:
    """The numbers that formulas of this node's row may name: shapes, counts and arguments."""
    found: dict[str, float] = {}

    def describe(name: str, value: Any) -> None:
        shape = shape_of(value)
        found[f"{name}.numel"] = float(math.prod(shape))
        found[f"{name}.ndim"] = float(len(shape))
        for i, size in enumerate(shape):
            found[f"{name}.shape[{i}]"] = float(size)
            found[f"{name}.shape[{i - len(shape)}]"] = float(size)

    describe("output", _first_tensor(node.meta.get("val")))
    for name, argument in named_arguments(node).items():
        if isinstance(argument, fx.Node):
            value = argument.meta.get("val")
            if isinstance(value, torch.Tensor):
                describe(name, value)
            elif isinstance(value, torch.SymInt | torch.SymFloat | int | float):
                found[name] = float(hint(value))
        elif isinstance(argument, bool | int | float):
            found[name] = float(argument)
        elif isinstance(argument, list | tuple) and all(isinstance(a, int) for a in argument):
            found[f"{name}.numel"] = float(math.prod(argument))
    return found


def _first_tensor(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def evaluate(expression: sympy.Expr, values: Mapping[str, float]) -> float:
    """A formula without moments as a number, in double precision as ``math`` computes it.

    Raises ``CannotRun`` for a name that has no value at this node.
    """
    if expression.is_Symbol:
        if expression.name not in values:
            raise CannotRun(f"{expression.name} is not known")
        return float(values[expression.name])
    if expression.is_Number:
        return float(expression)
    arguments = [evaluate(a, values) for a in expression.args]
    if expression.is_Add:
        return math.fsum(arguments)
    if expression.is_Mul:
        return math.prod(arguments)
    if expression.is_Pow:
        base, power = arguments
        if base == 0.0 and power < 0.0:
            return math.inf  # A mean over nothing.
        if power == 0.5:
            return math.sqrt(base)
        return 1.0 / math.sqrt(base) if power == -0.5 else base**power
    functions = {"exp": math.exp, "log": math.log, "Min": min, "Max": max, "erf": math.erf}
    return float(functions[expression.func.__name__](*arguments))  # type: ignore[operator]


def evaluate_default(expression: sympy.Expr, node: fx.Node) -> float:
    """The value that an argument has where the call passes None."""
    values = symbol_values(node)
    tensor = node.meta["val"]
    tensor = _first_tensor(tensor)
    # Kernels compute half-width types in float32.
    wide = torch.promote_types(tensor.dtype, torch.float32)
    values["epsilon"] = float(torch.finfo(wide).eps)
    return evaluate(expression, values)
