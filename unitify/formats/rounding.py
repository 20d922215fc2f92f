"""Rounding by arithmetic: to the numbers that a given count of mantissa bits leaves.

Takes tensors and the two facts of a format that decide its spacing; knows neither the largest
value of a format nor its special codes (``formats`` does). Infinities and NaN pass unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def octave(x: Tensor, lowest: int) -> Tensor:
    """The largest power of two that no element's magnitude is below, element by element.

    2^``lowest`` for what is smaller, and for what is infinite or NaN. Of logarithms and
    comparisons, which every compiler and exchange format has.
    """
    magnitude = x.abs()
    magnitude = torch.where(magnitude.isfinite(), magnitude, 0.0).clamp_min(2.0**lowest)
    power = torch.exp2(magnitude.log2().floor())
    # A logarithm is rounded: next to a power of two it may be on the wrong side.
    power = torch.where(power > magnitude, power / 2, power)
    return torch.where(magnitude - power >= power, power * 2, power)


def spacing(x: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """The distance between neighbors around each element: 2^(e − mantissa bits).

    e is the element's exponent, and at least ``min_exponent``: below it numbers are subnormal.
    """
    return octave(x, min_exponent) * 2.0**-mantissa_bits


def round_nearest(x: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """``x`` rounded to the nearest number, to the one with an even last bit in a tie."""
    step = spacing(x, mantissa_bits, min_exponent)
    return (x / step).round() * step
