"""What a cast adds to a value of known moments: the moments of its rounding error.

Takes a ``Moment`` (elements known exactly, per channel, or by one number) and an ``OperandCast``;
gives the ``Moment`` of Q(x) − x at true scale. A known weight has a known error; of anything else
the error has no mean, and the mean square that its RMS lets a normal distribution expect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from unitify.formats import Format, quantise
from unitify.moments import Moment
from unitify.snr import relative_error

#: Points an octave at which the curve of a format is computed; between them it is interpolated.
_DENSITY = 8


@dataclass(frozen=True)
class OperandCast:
    """An operand x is replaced by scale · Q(x / scale), all at true scale."""

    format: Format
    scale: float = 1.0


def cast_error(x: Moment, shape: tuple[int, ...], cast: OperandCast) -> Moment:
    """Moments of the rounding error of a tensor of this shape."""
    if is_known(x, shape):
        error = quantise(x.mean / cast.scale, cast.format) * cast.scale - x.mean
        return Moment(error, error * error)
    square = x.square * relative_errors(cast.format, x.square.sqrt() / cast.scale)
    return Moment(torch.zeros_like(square), square)


def is_known(x: Moment, shape: tuple[int, ...]) -> bool:
    """Is every single element known, as those of a weight are?"""
    return tuple(x.mean.shape) == shape and not bool(x.var.any())


def relative_errors(format: Format, rms: Tensor) -> Tensor:
    """``relative_error`` of normal elements, for each RMS of an array."""
    place = rms.clamp_min(2.0**-200).log2() * _DENSITY
    lower = place.floor()
    points, where = lower.unique(return_inverse=True)
    curve = [[_log_error(format, int(p) + i) for p in points.tolist()] for i in (0, 1)]
    low, high = (torch.tensor(c, dtype=torch.float64)[where] for c in curve)
    return torch.where(rms > 0, torch.exp2(low + (high - low) * (place - lower)), 0.0)


@cache
def _log_error(format: Format, point: int) -> float:
    return math.log2(max(relative_error(format, 2.0 ** (point / _DENSITY)), 1e-30))
