"""Rounding by arithmetic to a given number of mantissa bits.

Takes tensors, and the mantissa bits and least exponent of a format. It ignores the largest value
and the special codes, which ``table`` handles. Infinities and NaN pass unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def octave(x: Tensor, lowest: int) -> Tensor:
    """The largest power of two up to the magnitude of each element.

    2^``lowest`` for smaller magnitudes, infinities and NaN. It uses logarithms and comparisons,
    which every compiler and exchange format supports.
    """
    magnitude = x.abs()
    magnitude = torch.where(magnitude.isfinite(), magnitude, 0.0).clamp_min(2.0**lowest)
    power = torch.exp2(magnitude.log2().floor())
    # Near a power of two a rounded logarithm may be on the wrong side.
    power = torch.where(power > magnitude, power / 2, power)
    return torch.where(magnitude - power >= power, power * 2, power)


def spacing(x: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """The distance between neighbors around each element: 2^(e − mantissa bits).

    e is the element's exponent, and at least ``min_exponent``: below it numbers are subnormal.
    """
    return octave(x, min_exponent) * 2.0**-mantissa_bits


def round_nearest(x: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """``x`` rounded to the nearest number, ties to an even last bit."""
    step = spacing(x, mantissa_bits, min_exponent)
    return (x / step).round() * step
