"""Moments by a rule's formulas, on arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.counts import COUNTS
from unitify.analysis.moments import Moment, evaluate_moments, fit, fitted, from_parts, realized
from unitify.analysis.softmax import jacobian, participation
from unitify.rulebook.dimensions import evaluate, symbol_values
from unitify.rulebook.operation import Operation
from unitify.rulebook.refusal import CannotRun
from unitify.rulebook.rule_table import Moments, Rule
from unitify.rulebook.schema import named_arguments


def formula_forward(operation: Operation, rule: Rule, operands: Mapping[str, Moment]) -> Moment:
    """Moments of the result, by the row's ``forward``."""
    assert rule.forward is not None
    found = Moment(*_evaluated(operation, rule, rule.forward, operands))
    return fitted(found, operation.result_shapes[0])


def formula_statistics(
    operation: Operation, rule: Rule, operands: Mapping[str, Moment], name: str
) -> Moment:
    """Moments of one operand, by the row's ``statistics`` of other operands."""
    found = Moment(*_evaluated(operation, rule, rule.statistics[name], operands))
    return fitted(found, operation.shape(name))


def formula_gradient(
    operation: Operation,
    rule: Rule,
    operands: Mapping[str, Moment],
    name: str,
    grad: Moment,
    seed: int = 0,
) -> Moment:
    """Moments of the gradient of one operand, by the row's ``backward``.

    The part that elements along a dimension share (the row's ``common``) is drawn at random. The
    formulas of a ``broadcast`` row hold for an element of the result, and are summed over the
    dimensions along which the operand was broadcast.
    """
    moments = rule.backward[name]
    mean, square = _evaluated(operation, rule, moments, {**operands, "grad": grad})
    shape, result = operation.shape(name), operation.result_shapes[0]
    laid = _along_channels(shape, len(result)) if name in rule.channels else shape
    if rule.broadcast:
        mean, square = _summed(mean, square, result, laid)
    found = fitted(Moment(mean, square), laid)
    if name in rule.common:
        found = _with_common(operation, rule, {**operands, "grad": grad}, name, found, seed)
    return found if laid == shape else Moment(found.mean.flatten(), found.square.flatten())


def _with_common(
    operation: Operation,
    rule: Rule,
    operands: Mapping[str, Moment],
    name: str,
    found: Moment,
    seed: int,
) -> Moment:
    """``found``, with one draw of the shared part added to its mean."""
    common = rule.common[name]
    var = torch.minimum(_evaluated(operation, rule, common.var, operands)[0], found.var)
    shape = list(operation.shape(name))
    for dimension in common.along:
        shape[dimension] = 1
        var = var.mean(dimension, keepdim=True)
    shared = realized(Moment(torch.zeros_like(var), var), tuple(shape), seed)
    return from_parts(found.mean + shared.mean, (found.var - var).clamp_min(0.0))


def _along_channels(shape: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """``shape``, of one entry, moved to dimension 1 of ``ndim`` dimensions."""
    return (*shape, *[1] * (ndim - 2)) if len(shape) == 1 else shape


def _evaluated(
    operation: Operation, rule: Rule, moments: Moments, operands: Mapping[str, Moment]
) -> tuple[Tensor, Tensor]:
    values = formula_values(operation, rule, operands)
    over = over_dimensions(operation, rule)
    ndim = len(operation.result_shapes[0])
    operands = {n: _laid(m, ndim) if n in rule.channels else m for n, m in operands.items()}
    functions: dict[str, Callable[..., Tensor]] = {
        "average": over.average,
        "largest": over.largest,
        "participation": participation,
        "jacobian": jacobian,
    }
    mean = evaluate_moments(moments.mean, operands, values, functions)
    square = evaluate_moments(moments.square, operands, values, functions)
    mean, square = torch.broadcast_tensors(mean, square)
    return mean, torch.maximum(square, mean * mean)


def _laid(moment: Moment, ndim: int) -> Moment:
    mean, square = (m.reshape(_along_channels(m.shape, ndim)) for m in (moment.mean, moment.square))
    return Moment(mean, square)


def formula_values(
    operation: Operation, rule: Rule, operands: Mapping[str, Moment]
) -> dict[str, Any]:
    """Numbers that the formulas of a row may name at this node. A count may be an array."""
    values: dict[str, Any] = symbol_values(operation.node)
    for name, argument in named_arguments(operation.node).items():
        if isinstance(argument, fx.Node) and name not in values:
            known = operation.number(name)
            if isinstance(known, bool | int | float):
                values[name] = float(known)
    if rule.law is not None:
        for name, default in rule.law.defaults.items():
            if name not in values:
                held = {**values, "epsilon": torch.finfo(torch.float32).eps}
                values[name] = evaluate(default, held)
    shape = _widest(operation)
    over = _over(operation, rule, len(shape))
    values["over.numel"] = float(math.prod(shape[d] for d in over))
    for name, expression in rule.dims.items():
        if expression.is_Symbol and expression.name in COUNTS:
            values[name] = COUNTS[expression.name](operation, operands)
            continue
        named = {s.name for s in expression.free_symbols} & COUNTS.keys()
        counted = {n: float(COUNTS[n](operation, operands)) for n in named}
        values[name] = evaluate(expression, {**values, **counted})
    return values


@dataclass(frozen=True)
class Over:
    """The ``over`` dimensions of a row at one node, counted from the end; they keep size one."""

    usual: tuple[int, ...]

    def average(self, array: Tensor, *dimensions: int) -> Tensor:
        """``average(e)`` of the row; ``average(e, d)`` is the mean over dimension ``d``."""
        present = [d for d in dimensions or self.usual if -d <= array.dim()]
        return array.mean(present, keepdim=True) if present else array

    def largest(self, array: Tensor) -> Tensor:
        """``largest(e)`` of the row."""
        present = [d for d in self.usual if -d <= array.dim()]
        return array.amax(present, keepdim=True) if present else array


def over_dimensions(operation: Operation, rule: Rule) -> Over:
    """The dimensions of ``average`` and ``largest`` at this node."""
    return Over(tuple(_over(operation, rule, len(_widest(operation)))))


def _widest(operation: Operation) -> tuple[int, ...]:
    """The shape of the operand with the most dimensions."""
    shapes = [operation.shape(n) for n in operation.operands if _is_tensor(operation, n)]
    return max(shapes, key=len, default=())


def _is_tensor(operation: Operation, name: str) -> bool:
    return isinstance(operation.operands[name], fx.Node)


def _over(operation: Operation, rule: Rule, ndim: int) -> list[int]:
    """The dimensions of ``over``, counted from the end."""
    over = rule.over
    if over is None:
        return []
    if isinstance(over, tuple):
        listed = list(over)
    else:
        kind, _, what = over.partition(":")
        if kind == "trailing":
            count = len(operation.number(what))
            return [-i - 1 for i in range(count)]
        if kind == "except":
            kept = int(what) % ndim
            return [d - ndim for d in range(ndim) if d != kept]
        argument = operation.number(what)
        listed = list(argument) if isinstance(argument, list | tuple) else [argument]
        if argument is None or not listed:
            listed = list(range(ndim))
    if any(not -ndim <= d < ndim for d in listed):
        raise CannotRun(f"it has {ndim} dimensions, and its row averages over others")
    return [d if d < 0 else d - ndim for d in listed]


def _summed(
    mean: Tensor, square: Tensor, result: tuple[int, ...], operand: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    var = (square - mean * mean).clamp_min(0.0)
    mean, var = fit(mean, result), fit(var, result)
    leading = len(result) - len(operand)
    for dimension, size in enumerate(result):
        own = operand[dimension - leading] if dimension >= leading else 1
        if own == 1 and size > 1:
            if mean.shape[dimension] == 1:
                mean, var = mean * size, var * size
            else:
                mean = mean.sum(dimension, keepdim=True)
                var = var.sum(dimension, keepdim=True)
    return mean, var + mean * mean
