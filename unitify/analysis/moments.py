"""Moments of a tensor's elements, and formulas on them.

A ``Moment`` holds E[x] and E[x²] as arrays that broadcast to the tensor's shape. A dimension
of size one means that all positions along it are alike. A weight is known element by element (its
mean square is its square). An activation is known per channel where weights make its channels
differ. Otherwise one number holds for the whole tensor.

Elements are assumed to be independent. Where a function is applied to them, they are assumed to be
normal, or to have the distribution of their range where one is known (``quadrature``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import sympy
import torch
from torch import Tensor

from unitify.rulebook.refusal import CannotRun

#: Moments of more elements than this are held in float32, to halve their memory.
_LARGE = 2**16
#: The largest relative difference of two numbers in double precision that counts as rounding.
_ROUNDING = 2.0**-40


@dataclass(frozen=True)
class Moment:
    """E[x] and E[x²] of a tensor's elements, as arrays that broadcast to its shape.

    Every element is between ``low`` and ``high``.
    """

    mean: Tensor
    square: Tensor
    low: float = -math.inf
    high: float = math.inf

    @property
    def var(self) -> Tensor:
        """E[x²] − E[x]², never negative."""
        return (self.square - self.mean * self.mean).clamp_min(0.0)

    @property
    def rms(self) -> float:
        """Root mean square over the whole tensor."""
        return math.sqrt(float(self.square.mean())) if self.square.numel() else 0.0

    @property
    def is_uniform(self) -> bool:
        """Do the same moments hold for the whole tensor?"""
        return self.mean.numel() == 1 and self.square.numel() == 1

    def uniform(self) -> Moment:
        """The moments of an element at a random position of the tensor."""
        shape = (1,) * self.mean.dim()
        mean, square = self.mean.mean().reshape(shape), self.square.mean().reshape(shape)
        return replace(self, mean=mean, square=square)

    def within(self, low: float, high: float) -> Moment:
        """The same moments, with the range narrowed to ``low`` and ``high``."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))

    def times(self, factor: float) -> Moment:
        """The moments of ``factor`` (positive) times the elements."""
        return Moment(
            self.mean * factor, self.square * factor**2, self.low * factor, self.high * factor
        )


def number(value: float, ndim: int = 0) -> Moment:
    """The moments of a constant; infinities count as the largest float32."""
    limit = torch.finfo(torch.float32).max
    finite = min(max(float(value), -limit), limit)
    mean = torch.full((1,) * ndim, finite, dtype=torch.float64)
    return Moment(mean, mean * mean, finite, finite)


def gaussian(mean: float, rms: float, ndim: int = 0) -> Moment:
    """The moments of a tensor with only a mean and an RMS."""
    shape = (1,) * ndim
    return Moment(
        torch.full(shape, float(mean), dtype=torch.float64),
        torch.full(shape, float(rms) ** 2, dtype=torch.float64),
    )


def exactly(tensor: Tensor) -> Moment:
    """The moments of a tensor whose elements are known; of a complex one, of its real parts."""
    tensor = tensor.real if tensor.is_complex() else tensor
    dtype = torch.float32 if tensor.numel() > _LARGE else torch.float64
    values = tensor.detach().to(device="cpu", dtype=dtype)
    if not bool(values.sum().isfinite()):
        limit = torch.finfo(torch.float32).max
        values = torch.nan_to_num(values.double(), nan=0.0, posinf=limit, neginf=-limit)
    return Moment(values, values * values)


def from_parts(mean: Tensor, var: Tensor) -> Moment:
    """The moments of a mean and a variance."""
    return Moment(mean, var + mean * mean)


def add(a: Moment, b: Moment) -> Moment:
    """The moments of the sum of two independent tensors of one shape."""
    return from_parts(a.mean + b.mean, a.var + b.var)


def realized(moment: Moment, shape: tuple[int, ...], seed: int) -> Moment:
    """One draw of a tensor as exact moments, for copies that are correlated.

    The mean square of the draw is exactly that of ``moment``.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = moment.var.sqrt() * torch.randn(shape, generator=generator, dtype=torch.float64)
    wanted, found = moment.var.mean(), noise.square().mean()
    values = moment.mean + noise * (wanted / found.clamp_min(1e-300)).sqrt()
    return Moment(values, values * values)


def fit(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``array``, averaged over the dimensions that do not broadcast to ``shape``."""
    while array.dim() > len(shape):
        array = array.mean(0)
    while array.dim() < len(shape):
        array = array.unsqueeze(0)
    for dimension, size in enumerate(shape):
        if array.shape[dimension] not in (1, size):
            array = array.mean(dimension, keepdim=True)
    return array


def fitted(moment: Moment, shape: tuple[int, ...]) -> Moment:
    """``moment``, averaged over the dimensions that do not broadcast to ``shape``."""
    return replace(moment, mean=fit(moment.mean, shape), square=fit(moment.square, shape))


def compress(array: Tensor) -> Tensor:
    """One position of every dimension along which all positions are equal, up to rounding.

    A kernel may round a position otherwise for its place in memory.
    """
    for dimension in range(array.dim()):
        if array.shape[dimension] <= 1:
            continue
        first, last = (array.narrow(dimension, i, 1) for i in (0, array.shape[dimension] - 1))
        # The last position mostly shows that they differ.
        if array.stride(dimension) == 0 or (_is_equal(last, first) and _is_equal(array, first)):
            array = first
    # A view would keep the whole array alive.
    return array.clone() if array.untyped_storage().nbytes() > array.nbytes else array


def _is_equal(array: Tensor, first: Tensor) -> bool:
    if bool((array == first).all()):
        return True
    return bool(torch.isclose(array, first, rtol=_ROUNDING, atol=0.0).all())


def limited(moment: Moment, elements: int) -> Moment:
    """At most ``elements`` numbers: averages over the dimensions that vary least."""
    mean, square = torch.broadcast_tensors(moment.mean, moment.square)
    while square.numel() > elements:
        kept = [d for d, size in enumerate(square.shape) if size > 1]
        loss = {d: float((square - square.mean(d, keepdim=True)).square().mean()) for d in kept}
        least = min(kept, key=lambda d: loss[d])
        mean, square = mean.mean(least, keepdim=True), square.mean(least, keepdim=True)
    if square.numel() == moment.square.numel():
        return moment
    return replace(moment, mean=mean, square=square)


def compressed(moment: Moment) -> Moment:
    """The same moments, with size one along the dimensions in which they do not vary."""
    return replace(moment, mean=compress(moment.mean), square=compress(moment.square))


# Formulas.


def evaluate_moments(
    expression: sympy.Expr,
    operands: Mapping[str, Moment],
    values: Mapping[str, float | Tensor],
    functions: Mapping[str, Callable[..., Tensor]],
) -> Tensor:
    """A formula on arrays.

    ``operands``: the moments for ``mean(x)``, ``rms(x)``, ``var(x)`` and ``square(x)``;
    ``values``: every other name; ``functions``: ``average``, ``largest`` and so on, on arrays
    (dimensions are integers).
    """
    # No closure calls itself here: its cycle would keep the moments until a collection.
    known = operands, values, functions
    if expression.is_Symbol:
        if expression.name not in values:
            raise CannotRun(f"{expression.name} is not known")
        return torch.as_tensor(values[expression.name], dtype=torch.float64)
    if expression.is_Number:
        return torch.tensor(float(expression), dtype=torch.float64)
    name = expression.func.__name__
    if name in _OF_OPERAND:
        operand = str(expression.args[0])
        if operand not in operands:
            raise CannotRun(f"the moments of {operand} are unknown")
        return _OF_OPERAND[name](operands[operand])
    if name == "average":
        return functions[name](
            evaluate_moments(expression.args[0], *known), *(int(a) for a in expression.args[1:])
        )
    arguments = [evaluate_moments(a, *known) for a in expression.args]
    if name in functions:
        return functions[name](*arguments)
    if expression.is_Pow:
        return _power(arguments[0], expression.args[1], arguments[1])
    result = arguments[0]
    if name in _FOLDED:
        for other in arguments[1:]:
            result = _FOLDED[name](result, other)
        return result
    return _UNARY[name](result)


_OF_OPERAND: dict[str, Callable[[Moment], Tensor]] = {
    "mean": lambda m: m.mean,
    "square": lambda m: m.square,
    "var": lambda m: m.var,
    "rms": lambda m: m.square.sqrt(),
}
_FOLDED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Mul": torch.mul,
    "Min": torch.minimum,
    "Max": torch.maximum,
}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "erf": torch.erf,
}


def _power(base: Tensor, exponent: sympy.Expr, value: Tensor) -> Tensor:
    if exponent == sympy.Rational(1, 2):
        return base.clamp_min(0.0).sqrt()
    return base.pow(value)
