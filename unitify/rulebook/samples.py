"""Sample operands of the rows of the rule table.

``normal(48, 64, mean=0.3)`` in a row becomes a ``Sample``: a shape, the moments of its elements,
and a function that draws it. Numbers, lists and quoted text are plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from unitify.rulebook.expressions import parse_sample

#: Elements of a sample.
_MOST = 2**24


@dataclass(frozen=True)
class Sample:
    """A random tensor: its shape, and E[x] and E[x²] of its elements.

    ``make`` draws the tensor by a generator, in float64 where it is floating.
    ``grad``: can it have a gradient?
    """

    shape: tuple[int, ...]
    mean: float
    square: float
    make: Callable[[Generator], Tensor]
    grad: bool = True

    def __post_init__(self) -> None:
        _check_shape(self.shape)

    def draw(self, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """One draw; floating tensors as ``dtype``."""
        tensor = self.make(generator)
        if tensor.is_complex():
            tensor = tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
        elif tensor.is_floating_point():
            tensor = tensor.to(dtype)
        else:
            return tensor
        return tensor.requires_grad_(self.grad)


def parse_arguments(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a row's ``sample``: ``Sample`` for a tensor, plain values otherwise.

    Raises ``ExpressionError`` for text that is not a sample argument.
    """
    return {name: _parsed(value) for name, value in sample.items()}


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        return parse_sample(value, FUNCTIONS)
    return [_parsed(item) for item in value] if isinstance(value, list) else value


def draw_arguments(
    arguments: Mapping[str, Any], generator: Generator, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """``arguments`` with every ``Sample`` drawn."""

    def drawn(value: Any) -> Any:
        if isinstance(value, Sample):
            return value.draw(generator, dtype)
        return [drawn(item) for item in value] if isinstance(value, list) else value

    return {name: drawn(value) for name, value in arguments.items()}


def _check_shape(shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` for what is no shape, or one of too many elements."""
    sizes = [size if isinstance(size, int) and size >= 0 else -1 for size in shape]
    if min(sizes, default=0) < 0 or math.prod(sizes) > _MOST:
        raise ValueError(f"the shape {shape} is not one of at most {_MOST} elements")


def normal(*shape: int, mean: float = 0.0, rms: float | None = None, grad: bool = True) -> Sample:
    """Normal with this mean and RMS (by default, unit variance)."""
    square = 1.0 + mean * mean if rms is None else rms * rms
    std = math.sqrt(square - mean * mean)

    def make(generator: Generator) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator).double()

    return Sample(shape, mean, square, make, grad)


def uniform(*shape: int, grad: bool = True) -> Sample:
    """Uniform in [0, 1)."""
    return Sample(shape, 0.5, 1 / 3, lambda g: torch.rand(shape, generator=g).double(), grad)


def positive(*shape: int, grad: bool = True) -> Sample:
    """Uniform in [1/2, 3/2): far from zero."""

    def make(generator: Generator) -> Tensor:
        return torch.rand(shape, generator=generator).double() + 0.5

    return Sample(shape, 1.0, 1.0 + 1 / 12, make, grad)


def transposed(*shape: int) -> Sample:
    """Normal, in the memory layout of the transposed shape."""
    return Sample(shape, 0.0, 1.0, lambda g: torch.randn(shape[::-1], generator=g).double().mT)


def log_probabilities(*shape: int) -> Sample:
    """The logarithm of a softmax over the last dimension."""

    def make(generator: Generator) -> Tensor:
        return torch.randn(shape, generator=generator).double().log_softmax(-1)

    return Sample(shape, math.nan, math.nan, make)


def well_conditioned(count: int, size: int) -> Sample:
    """Square matrices with a dominant diagonal."""
    shape = (count, size, size)

    def make(generator: Generator) -> Tensor:
        return torch.randn(shape, generator=generator).double() + 2 * size * torch.eye(size)

    return Sample(shape, 2.0, 1.0 + 4 * size, make)


def ascending(count: int) -> Sample:
    """Numbers in ascending order, around zero."""
    _check_shape((count,))
    values = torch.linspace(-1.0, 1.0, count, dtype=torch.float64)
    return Sample((count,), 0.0, float(values.square().mean()), lambda _: values.clone())


def signs(*shape: int) -> Sample:
    """Plus and minus one, with equal probability."""

    def make(generator: Generator) -> Tensor:
        return torch.randint(2, shape, generator=generator).double() * 2 - 1

    return Sample(shape, 0.0, 1.0, make, grad=False)


def complex_normal(*shape: int) -> Sample:
    """Complex, with normal parts."""

    def make(generator: Generator) -> Tensor:
        return torch.complex(
            torch.randn(shape, generator=generator).double(),
            torch.randn(shape, generator=generator).double(),
        )

    return Sample(shape, 0.0, 2.0, make)


def integers(high: int, *shape: int) -> Sample:
    """Integers in [0, high)."""
    square = (high - 1) * (2 * high - 1) / 6
    return Sample(shape, (high - 1) / 2, square, lambda g: torch.randint(high, shape, generator=g))


def ends(groups: int, count: int) -> Sample:
    """The ends of random groups of ``count`` things, in 32 bits."""
    _check_shape((groups,))
    _check_shape((count,))

    def make(generator: Generator) -> Tensor:
        drawn = torch.randint(count + 1, (groups,), generator=generator, dtype=torch.int32)
        drawn[-1] = count
        return drawn.sort().values

    return Sample((groups,), math.nan, math.nan, make)


def multiples(step: int, *shape: int) -> Sample:
    """0, step, 2·step, …: integers that all differ."""
    _check_shape(shape)
    values = torch.arange(math.prod(shape)).reshape(shape) * step
    return Sample(shape, math.nan, math.nan, lambda _: values.clone())


def constant(value: int, *shape: int) -> Sample:
    """The same integer everywhere."""
    return Sample(shape, value, value * value, lambda _: torch.full(shape, value))


def permutation(*shape: int) -> Sample:
    """A permutation of 0 … shape[-1] − 1 in every row."""

    def make(generator: Generator) -> Tensor:
        return torch.rand(shape, generator=generator).argsort(-1)

    return Sample(shape, math.nan, math.nan, make)


def booleans(*shape: int, share: float = 0.5) -> Sample:
    """True with probability ``share``."""
    return Sample(shape, share, share, lambda g: torch.rand(shape, generator=g) < share)


def dtype(name: str) -> torch.dtype:
    """The type of this name."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no type {name!r}")
    return found


#: The functions that a row's sample may call.
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "normal": normal,
    "uniform": uniform,
    "positive": positive,
    "transposed": transposed,
    "log_probabilities": log_probabilities,
    "well_conditioned": well_conditioned,
    "ascending": ascending,
    "signs": signs,
    "complex_normal": complex_normal,
    "integers": integers,
    "ends": ends,
    "multiples": multiples,
    "constant": constant,
    "permutation": permutation,
    "booleans": booleans,
    "dtype": dtype,
    "device": torch.device,
}
