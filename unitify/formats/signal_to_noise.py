"""Signal to noise of a cast, for a distribution, a format and a scale.

Takes a format and the distribution of a tensor's elements; gives E[x²] over the mean square of the
rounding error, in decibels. It does not sample. All x between two midpoints round to the same
value v, and ∫ (x − v)² p(x) dx follows exactly from the first three partial moments of the density.

Blake et al. 2023 (arXiv 2303.11257, figure 2) show by these curves that RMS 1 is a good target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Protocol

import torch
from torch import Tensor

from unitify.formats.table import BlockFormat, Format, quantize

#: The most mantissa bits for which every number of a format is listed.
_LISTED = 7
#: Steps an octave for the largest element of a block.
_SHARES = 24
#: A share of blocks that is small enough to be left out.
_UNLIKELY = 1e-9
#: Octaves below and above the RMS in which numbers are listed. The power below, 2^-48, is less than
#: the error of seven mantissa bits.
_BELOW, _ABOVE = 24, 16
#: Octaves around RMS 1 in which a scale is searched.
_OCTAVES = 20
#: Decibels by which a scale may be worse than the best. The curve is flat over some octaves
#: (docs/results/formats.md), so this leaves a choice.
_TOLERANCE = 0.1


class Distribution(Protocol):
    """A distribution that is symmetric about zero, with E[x²] = 1."""

    def partial(self, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∫ p, ∫ x·p and ∫ x²·p from 0 to ``bound``, for the density p of |x|."""
        ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class GeneralizedNormal:
    """The density ∝ exp(−|x/α|^power): normal for 2, Laplace for 1, longer tails below.

    Partial moments are regularized incomplete gamma functions of (bound/α)^power.
    """

    power: float = 2.0

    @staticmethod
    def of_kurtosis(kurtosis: float) -> GeneralizedNormal:
        """The one with E[x⁴]/E[x²]² = ``kurtosis`` (normal 3, Laplace 6), between 1.9 and 10⁴."""
        low, high = 0.2, 12.0
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (
                (middle, high) if GeneralizedNormal(middle).kurtosis > kurtosis else (low, middle)
            )
        return GeneralizedNormal(low)

    @property
    def kurtosis(self) -> float:
        """E[x⁴] / E[x²]²."""
        one, three, five = (math.lgamma(k / self.power) for k in (1, 3, 5))
        return math.exp(five + one - 2 * three)

    def partial(self, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Partial moments, as in ``Distribution``."""
        one, three = (math.lgamma(k / self.power) for k in (1, 3))
        width = math.exp((one - three) / 2)
        reach = (bound / width).pow(self.power)

        def moment(order: int) -> Tensor:
            a = (order + 1) / self.power
            whole = width**order * math.exp(math.lgamma(a) - one)
            share: Tensor = torch.special.gammainc(torch.full_like(reach, a), reach)
            return share * whole

        return moment(0), moment(1), moment(2)


NORMAL = GeneralizedNormal()


def relative_error(format: Format, rms: float, distribution: Distribution = NORMAL) -> float:
    """E[(Q(x) − x)²] / E[x²] of elements of this RMS, cast to ``format``, saturating.

    Each mantissa bit beyond seven divides the mean square of the error by four, as for a uniform
    error. Elements of a block are assumed to be independent.
    """
    if not rms > 0:
        return 0.0
    if isinstance(format, BlockFormat):
        return _error_in_blocks(format, rms, distribution)
    octave = math.floor(math.log2(rms))
    low = min(max(format.min_exponent, octave - _BELOW), format.max_exponent)
    high = max(min(format.max_exponent, octave + _ABOVE), low)
    values, bounds = (x / rms for x in _cells(format, low, high))
    below = [torch.cat([torch.zeros(1), m]) for m in distribution.partial(bounds)]
    mass, first, second = (m[1:] - m[:-1] for m in below)
    errors = (second - 2 * values * first + values * values * mass).clamp_min(0.0)
    rounding = float(errors[:-1].sum()) * 0.25 ** max(format.mantissa_bits - _LISTED, 0)
    return rounding + float(errors[-1])


def _error_in_blocks(format: BlockFormat, rms: float, distribution: Distribution) -> float:
    """The error for a given largest element of a block, averaged over that element.

    With F for the distribution of |x|, the largest of a block is below a with probability
    F(a)^size. The others have the density of |x| below it.
    """
    fine, own_weights = _largest(format.size, distribution, _SHARES**2)
    own = (_divided(fine, format.scales(fine * rms) / rms, format.element) - fine) ** 2
    largest, weights = _largest(format.size, distribution, _SHARES)
    scales = format.scales(largest * rms) / rms
    values = format.element.values()
    ends = torch.cat([(values[1:] + values[:-1]) / 2, largest.new_tensor([torch.inf])])
    # A block with scale zero becomes zero.
    ends = torch.where(scales[:, None] > 0, torch.outer(scales.clamp_min(1e-300), ends), torch.inf)
    below = distribution.partial(torch.minimum(ends, largest[:, None]))
    mass, first, second = (torch.nn.functional.pad(m, (1, 0)).diff() for m in below)
    held = torch.outer(scales, values)
    others = (second - 2 * held * first + held * held * mass).clamp_min(0.0).sum(1)
    others = others / distribution.partial(largest)[0]
    return float(weights @ others * (format.size - 1) + own_weights @ own) / format.size


@lru_cache(maxsize=16)
def _largest(size: int, distribution: Distribution, shares: int) -> tuple[Tensor, Tensor]:
    """Magnitudes of the largest of ``size`` elements, and their probabilities."""
    steps = torch.arange(-_BELOW * shares, _ABOVE * shares + 1, dtype=torch.float64)
    met = distribution.partial(torch.exp2(steps / shares))[0].clamp_max(1.0) ** size
    likely = met.diff() > _UNLIKELY
    weights = met.diff()[likely] / met.diff().sum()
    return torch.exp2((steps[:-1][likely] + 0.5) / shares), weights


def _divided(x: Tensor, scales: Tensor, format: Format) -> Tensor:
    return quantize(x / torch.where(scales > 0, scales, 1.0), format) * scales


def snr(format: Format, rms: float, distribution: Distribution = NORMAL) -> float:
    """10·log10(E[x²] / E[(Q(x) − x)²]): signal to noise of a cast, in decibels."""
    return decibels(relative_error(format, rms, distribution))


def decibels(relative: float) -> float:
    """A noise-to-signal ratio of powers, as signal to noise in decibels."""
    return -10 * math.log10(relative) if relative > 0 else math.inf


def best_scale(format: Format, rms: float, distribution: Distribution = NORMAL) -> float:
    """The power of two s at which to cast elements of this RMS, so that s·Q(x/s) is near x.

    It is the scale nearest to 1 among those within a tenth of a decibel of the best, because the
    curve is flat over many octaves, and scale 1 costs nothing.
    """
    if not rms > 0:
        return 1.0
    center = round(math.log2(rms))
    reach = range(-_OCTAVES, _OCTAVES + 1)
    found = {-k + center: snr(format, math.ldexp(rms, k - center), distribution) for k in reach}
    found[0] = snr(format, rms, distribution)
    best = max(found.values())
    near = [e for e, decibel in found.items() if decibel >= best - _TOLERANCE]
    return math.ldexp(1.0, min(near, key=lambda e: (abs(e), e)))


@cache
def _cells(format: Format, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Numbers of a format between two exponents, and the upper end of each cell: the midpoint.

    The last cell is that of all x beyond the largest number.
    """
    bits = min(format.mantissa_bits, _LISTED)
    part = replace(format, mantissa_bits=bits, min_exponent=low, max_exponent=high)
    values = part.values()
    ends = torch.tensor([format.largest, torch.inf], dtype=torch.float64)
    return torch.cat([values, ends[:1]]), torch.cat([(values[1:] + values[:-1]) / 2, ends])
