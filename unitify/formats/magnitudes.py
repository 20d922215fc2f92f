"""The histogram of a value's magnitudes by exponent and four mantissa bits.

Takes tensors; gives ``Magnitudes``: counts of |x| by sixteenths of each octave. Elements on a bound
are counted apart from those between two, because constants often lie on one and round differently.
A power of two moves the histogram by whole octaves, so it serves the true and the stored value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Bounds an octave: 2^e · (1 + i/16).
STEPS = 16
#: Bins an octave: one on each bound, and one between it and the next.
BINS = 2 * STEPS
#: Exponents with bins. Smaller magnitudes count as zero, larger ones into the last bin.
LOWEST, HIGHEST = -150, 128
_COUNT = (HIGHEST - LOWEST) * BINS
#: Bits of a double: the number of those after four mantissa bits, and infinity as an integer.
_FOLLOWING, _INFINITE = 48, 2047 << 52

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@dataclass(frozen=True)
class Magnitudes:
    """Counts of non-zero finite elements by magnitude, from exponent ``first`` (log2) on.

    ``counts``: ``BINS`` an octave, alternately on a bound and above it, where elements are assumed
    to be uniform. ``zeros`` and ``special`` (infinite or NaN) are separate.
    """

    first: int
    counts: tuple[float, ...]
    zeros: float = 0.0
    special: float = 0.0

    @property
    def total(self) -> float:
        """The number of non-zero finite elements."""
        return math.fsum(self.counts)

    @cached_property
    def rms(self) -> float:
        """Root mean square of the finite elements, within a few percent."""
        count, _, squares = (float(held[-1]) for held in self._sums)
        return math.sqrt(squares / count) if count else 0.0

    def octaves(self) -> tuple[float, ...]:
        """The share of non-zero elements in each octave, from ``first`` on."""
        total = self.total or 1.0
        starts = range(0, len(self.counts), BINS)
        return tuple(math.fsum(self.counts[i : i + BINS]) / total for i in starts)

    def below(self, bound: float, or_on: bool = False) -> float:
        """The share of non-zero elements with |x| < ``bound``; ``or_on``: ≤."""
        if not bound > 0 or not self.counts:
            return 0.0
        mantissa, exponent = math.frexp(bound)
        # frexp gives [1/2, 1); an octave starts at 2^e with a mantissa in [1, 2).
        position = (exponent - 1 - self.first + 2 * mantissa - 1) * STEPS
        if position < 0:
            return 0.0
        whole = int(position)
        count = math.fsum(self.counts[: 2 * whole])
        if or_on or position > whole:
            count += math.fsum(self.counts[2 * whole : 2 * whole + 1])
        count += math.fsum(self.counts[2 * whole + 1 : 2 * whole + 2]) * (position - whole)
        return count / self.total

    def partial(self, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Partial moments, as in ``signal_to_noise.Distribution``, of the histogram at RMS 1."""
        unit = self.rms or 1.0
        bounds, sums, total = self._bounds, self._sums, self.zeros + self.total or 1.0
        end = torch.minimum(bound * unit, bounds[-1])
        index = (torch.bucketize(end, bounds, right=True) - 1).clamp(-1, len(bounds) - 2)
        start = torch.where(index < 0, end, bounds[index])
        density = torch.where(index < 0, 0.0, self._density[index])

        def moment(order: int) -> Tensor:
            inside = density * (end ** (order + 1) - start ** (order + 1)) / (order + 1)
            found: Tensor = (sums[order][index + 1] + inside) / (total * unit**order)
            return found

        return moment(0), moment(1), moment(2)

    @cached_property
    def _bounds(self) -> Tensor:
        octaves = range(self.first, self.first + len(self.counts) // BINS)
        held = [math.ldexp(1 + i / STEPS, e) for e in octaves for i in range(STEPS)]
        return torch.tensor([*held, math.ldexp(1.0, octaves.stop)], dtype=torch.float64)

    @cached_property
    def _density(self) -> Tensor:
        """Elements between two bounds, divided by their distance."""
        between = torch.tensor(self.counts[1::2], dtype=torch.float64)
        return between / self._bounds.diff()

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σ |x|^k for k of 0 to 2: for zeros alone, then up to and including each bound."""

        def of_order(order: int) -> Iterator[Tensor]:
            powers = self._bounds ** (order + 1) / (order + 1)
            on = torch.tensor([*self.counts[::2], 0.0], dtype=torch.float64)
            zeros = torch.full((1,), 0.0 if order else self.zeros, dtype=torch.float64)
            between = torch.cat([zeros, self._density * powers.diff()])
            yield zeros
            yield (on * self._bounds**order + between).cumsum(0)

        zero, one, two = (torch.cat([*of_order(order)]) for order in range(3))
        return zero, one, two


def magnitudes_of(tensor: Tensor) -> Magnitudes:
    """The magnitudes of one tensor."""
    return from_counts(counted(tensor))


def stored(tensor: Tensor) -> Tensor:
    """The numbers that a tensor of any layout holds; of a sparse one, those not left out."""
    if tensor.is_sparse:
        return tensor.coalesce().values()
    if tensor.is_nested or tensor.layout in _COMPRESSED:
        return tensor.values()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def counted(tensor: Tensor) -> Tensor:
    """Counts that can be added: zeros, bins from exponent ``LOWEST`` on, special values.

    They are on the tensor's device, and need no synchronization. The bits of a double give its bin:
    exponent, four mantissa bits, and whether any further bit is set.
    """
    bits = tensor.detach().flatten().double().abs().view(torch.int64)
    special = (bits >= _INFINITE).sum()
    bits = bits.clamp_max(_INFINITE)
    below = bits >> _FOLLOWING
    above = bits.add_((1 << _FOLLOWING) - 1) >> _FOLLOWING
    index = below.add_(above).sub_(BINS * (1023 + LOWEST) - 1).clamp_(0, _COUNT)
    return torch.cat([torch.bincount(index, minlength=_COUNT + 1), special[None]])


def from_counts(held: Tensor) -> Magnitudes:
    """The magnitudes of a result of ``counted``, or of a sum of these."""
    zeros, special = float(held[0]), float(held[-1])
    own = held[1:-1].double()
    own[-1] -= special
    filled = own.nonzero() // BINS
    if not len(filled):
        return Magnitudes(0, (), zeros, special)
    first, last = int(filled[0]), int(filled[-1])
    counts = own[first * BINS : (last + 1) * BINS].tolist()
    return Magnitudes(first + LOWEST, tuple(counts), zeros, special)
