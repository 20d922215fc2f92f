"""Rounding by arithmetic: to the numbers that a given count of mantissa bits leaves.

Takes tensors and the two facts of a format that decide its spacing; knows neither the largest
value of a format nor its special codes (``formats`` does). Infinities and NaN pass unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spacing(x: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """The distance between neighbours around each element: 2^(e − mantissa bits).

    e is the element's exponent, and at least ``min_exponent``: below it numbers are subnormal.
    """
    exponent = torch.frexp(x).exponent - 1
    # Zero, infinity and NaN have no exponent; what frexp gives for them differs between kernels.
    exponent = torch.where((x == 0) | ~x.isfinite(), min_exponent, exponent)
    return torch.ldexp(torch.ones_like(x), exponent.clamp_min(min_exponent) - mantissa_bits)


def round_nearest(x: Tensor, mantissa_bits: int, min_exponent: int) -> Tensor:
    """``x`` rounded to the nearest number, to the one with an even last bit in a tie."""
    step = spacing(x, mantissa_bits, min_exponent)
    return (x / step).round() * step
