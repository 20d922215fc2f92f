"""The error of an operation's results that an error of one operand leads to, to first order.

As with the values' own moments the operation's row says how, and no operation is known here:

- linear in the operand: run (or counted) on the error in the operand's place, against the true
  moments of its partners: E[δ²]·E[w²] where the value had E[x²]·E[w²]
- linear by formula: the row's ``forward`` of the error
- a function of one operand: times E[f'(x)²], by quadrature
- by formula: times what the row's ``backward`` gives for a unit gradient
- sampled: times the mean square of sampled gradients

What is nothing of these (complex numbers, what cannot be run) keeps the ratio of error to value.
The two before know how much a gradient gathers in an operand's element, not where in the result the
error of that element goes: to the same place if the shapes agree, else evenly over the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unitify.analysis.formulas import along_channels, formula_forward, formula_slope
from unitify.analysis.forward import ForwardMoments, linear_names
from unitify.analysis.linear import linear_forward
from unitify.analysis.moments import Moment, fit, from_parts, gaussian, number
from unitify.analysis.quadrature import quadrature
from unitify.analysis.sampled import sampled_difference, sampled_gradients
from unitify.operations.laws import is_scalable
from unitify.operations.operation import Operation
from unitify.operations.rule_table import Rule

#: The error of every tensor of an argument, or of every result; None for none.
Errors = list["Moment | None"]


class ErrorPassage:
    """One operation, ready to be asked for any of its operands."""

    def __init__(
        self, forward: ForwardMoments, operation: Operation, rule: Rule | None, position: int
    ) -> None:
        self.operation = operation
        self.rule = rule
        self.position = position
        self.way = forward.ways[operation.node]
        self.results = forward.moments[operation.node]
        self.by_rule = rule is not None and self.way in ("run", "quadrature", "formula")
        self.operands: dict[str, Any] = forward.operands(operation, rule if self.by_rule else None)

    def between(self, operands: Mapping[str, Moment]) -> ErrorPassage:
        """The same operation with other moments in the place of some operands."""
        if not operands:
            return self
        made = copy(self)
        made.operands = {**self.operands, **operands}
        return made

    def is_product(self, name: str) -> bool:
        """Is the operand multiplied with others, by its law? (Else it is added, or put beside.)"""
        law = self.rule.law if self.rule is not None else None
        return law is not None and name in law.output

    def through(self, name: str, errors: Errors) -> Errors:
        """Errors of the results, for the errors of the tensors of the argument ``name``."""
        if not any(e is not None for e in errors):
            return [None] * len(self.operation.result_shapes)
        try:
            return self._through(name, errors)
        except RuntimeError:
            # What cannot run on moments nor on samples is taken to keep its operand's ratio.
            held = self.operands[name]
            operands = held if isinstance(held, list) else [held]
            pairs = [(e.rms, x.rms) for e, x in zip(errors, operands, strict=True) if e is not None]
            return self.in_ratio(math.fsum((e / x) ** 2 for e, x in pairs if x))

    def in_ratio(self, relative: float) -> Errors:
        """Errors whose mean square is ``relative`` times that of the results."""
        pairs = zip(self.results, self.operation.result_shapes, strict=True)
        return [m and gaussian(0.0, math.sqrt(relative) * m.rms, len(s)) for m, s in pairs]

    def _through(self, name: str, errors: Errors) -> Errors:
        if self.by_rule and self.rule is not None:
            if self.way == "run":
                return self._run(self.rule, name, errors)
            if name == self.rule.elementwise:
                return [_times(errors[0], *self._slope)]
            if self._is_linear(self.rule, name):
                held = {**self.operands, name: errors[0]}
                return [formula_forward(self.operation, self.rule, held)]
            if name in self.rule.backward:
                return [self._by_formula(self.rule, name, errors[0])]
            # An operand without a formula lends its shape or type.
            return [None]
        single = isinstance(self.operation.node.meta["val"], Tensor)
        if single and not isinstance(self.operation.operands[name], list):
            return [self._by_difference(name, errors[0])]
        return self._by_gradients(self._sampled.get(name), name, errors)

    def _by_difference(self, name: str, error: Moment | None) -> Moment:
        """Moments of a sampled change, apart along the dimensions in which the error is known."""
        assert error is not None
        change = sampled_difference(self.operation, self.operands, name, error, self.position)
        alike = change.dim() == error.mean.dim()
        shape = torch.broadcast_shapes(error.mean.shape, error.square.shape)
        pooled = [d for d in range(change.dim()) if not alike or shape[d] == 1]
        if not pooled:
            return Moment(change, change * change)
        return Moment(change.mean(pooled, keepdim=True), (change**2).mean(pooled, keepdim=True))

    def _is_linear(self, rule: Rule, name: str) -> bool:
        """Is the operation of degree one in the operand, and zero with it?"""
        if rule.law is None or rule.law.output.get(name) != 1 or name not in self.operands:
            return False
        at_zero = {**self.operands, name: self._blank(name)}
        return formula_forward(self.operation, rule, at_zero).rms == 0.0

    def _run(self, rule: Rule, name: str, errors: Errors) -> Errors:
        listed = isinstance(self.operation.operands[name], list)
        # Partners of a product keep their moments; what is added or put beside has no say.
        are_partners = name in rule.linear and self.is_product(name)
        named: dict[str, Any] = {
            n: self.operands[n] if are_partners and n in rule.linear else self._blank(n)
            for n in linear_names(rule, self.operands)
        }
        if not listed:
            named[name] = errors[0]
            return list(linear_forward(self.operation, rule, named))
        if not are_partners:
            pairs = zip(self._blank(name), errors, strict=True)
            named[name] = [blank if error is None else error for blank, error in pairs]
            return list(linear_forward(self.operation, rule, named))
        total: Errors = [None] * len(self.operation.result_shapes)
        for index, error in enumerate(errors):
            if error is not None:
                named[name] = [*self.operands[name]]
                named[name][index] = error
                total = added(total, list(linear_forward(self.operation, rule, named)))
        return total

    def _blank(self, name: str) -> Any:
        """Zeros in an operand's place."""
        argument = self.operation.operands.get(name)
        if isinstance(argument, list):
            return [number(0.0, len(self.operation.shape_of(a))) for a in argument]
        return number(0.0, len(self.operation.shape(name)))

    @cached_property
    def _slope(self) -> tuple[Tensor, Tensor]:
        assert self.rule is not None
        name = self.rule.elementwise
        assert name is not None
        _, slope = quadrature(lambda x: self.operation({name: x}), self.operands[name])
        return slope.mean, slope.square

    def _by_formula(self, rule: Rule, name: str, error: Moment | None) -> Moment:
        assert error is not None
        slope = formula_slope(self.operation, rule, self.operands, name)
        if not rule.broadcast:
            found = self._by_gradients([slope], name, [error])[0]
            assert found is not None
            return found
        shape = self.operation.result_shapes[0]
        if name in rule.channels:
            laid = [
                m.reshape(along_channels(tuple(m.shape), len(shape)))
                for m in (error.mean, error.square)
            ]
            error = Moment(laid[0], laid[1])
        found = _times(error, slope.mean, slope.square)
        return Moment(fit(found.mean, shape), fit(found.square, shape))

    @cached_property
    def _sampled(self) -> dict[str, list[Moment]]:
        unit: list[Moment | None] = [
            gaussian(0.0, 1.0, len(s)) for s in self.operation.result_shapes
        ]
        return sampled_gradients(self.operation, self.operands, unit, self.position)

    def _by_gradients(self, gains: list[Moment] | None, name: str, errors: Errors) -> Errors:
        """Where only what a gradient gathers is known."""
        shapes = self.operation.result_shapes
        if not gains:
            return [None] * len(shapes)
        argument = self.operation.operands[name]
        nodes = argument if isinstance(argument, list) else [argument]
        sizes = [self.operation.shape_of(n) for n in nodes if is_scalable(n)]
        if len(shapes) == 1 and sizes == shapes and errors[0] is not None:
            found = _times(errors[0], gains[0].square.sqrt(), gains[0].square)
            return [Moment(fit(found.mean, shapes[0]), fit(found.square, shapes[0]))]
        total = math.fsum(
            float((fit(e.square, s) * fit(g.square, s)).mean()) * math.prod(s)
            for e, g, s in zip(errors, gains, sizes, strict=True)
            if e is not None
        )
        square = total / max(sum(math.prod(s) for s in shapes), 1)
        return [gaussian(0.0, math.sqrt(square), len(s)) for s in shapes]


def added(a: Errors, b: Errors) -> Errors:
    """The sum of independent errors."""
    return [
        y if x is None else x if y is None else from_parts(x.mean + y.mean, x.var + y.var)
        for x, y in zip(a, b, strict=True)
    ]


def _times(error: Moment | None, mean: Tensor, square: Tensor) -> Moment:
    assert error is not None
    return Moment(error.mean * mean, error.square * square)
