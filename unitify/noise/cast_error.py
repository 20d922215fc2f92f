"""What a cast adds to a value of known moments: the moments of its rounding error.

Takes a ``Moment`` (elements known exactly, per channel, or by one number) and an ``OperandCast``;
gives the ``Moment`` of Q(x) − x at true scale. What varies over many steps of the format has an
error without mean, of the mean square that a normal distribution of its RMS lets expect. What does
not vary (a weight, a channel that is constant) has the error of its mean, the same everywhere. In
between the sawtooth Q(x) − x is averaged over a normal distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from unitify.analysis.moments import Moment
from unitify.formats.rounding import spacing
from unitify.formats.signal_to_noise import relative_error
from unitify.formats.table import Format, quantise
from unitify.operations.centring import Centring

#: Points an octave at which the curve of a format is computed; between them it is interpolated.
_DENSITY = 8
#: Cells on either side of the mean's own that are counted, for a spread of up to one step.
_CELLS = 5


@dataclass(frozen=True)
class OperandCast:
    """An operand x is replaced by mean + scale · Q((x − mean) / scale), all at true scale.

    ``mean``: one number a channel, for a product taken apart as ``centring`` says; empty for none.
    Weights are then rounded where they meet the deviation, and not where they meet the mean.
    """

    format: Format
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    centring: Centring | None = None

    def laid(self, ndim: int) -> Tensor | float:
        """The mean, so that it broadcasts to an operand of this rank."""
        if self.centring is None:
            return 0.0
        shape = [1] * ndim
        shape[self.centring.axis] = -1
        return torch.tensor(self.mean, dtype=torch.float64).reshape(shape)

    def deviation(self, x: Moment) -> Moment:
        """Moments of what is rounded."""
        shift = self.laid(x.mean.dim())
        square = x.square - 2 * x.mean * shift + shift * shift
        return Moment(x.mean - shift, square.clamp_min(0.0)) if self.mean else x


def cast_error(x: Moment, cast: OperandCast) -> Moment:
    """Moments of the rounding error of a tensor."""
    format, scale = cast.format, cast.scale
    x = cast.deviation(x)
    mean, var = x.mean / scale, x.var
    nearest = quantise(mean, format)
    if not var.any():
        # Every element is known, and so is its error.
        error = (nearest - mean) * scale
        return Moment(error, error * error)
    std = var.sqrt() / scale
    step = spacing(mean, format.mantissa_bits, format.min_exponent)
    bias = nearest - mean + _carried(nearest - mean, std, step)
    # How much is left of the first harmonic of the sawtooth's square.
    constancy = torch.exp(-2 * (math.pi * std / step) ** 2)
    varied = x.square * relative_errors(format, x.square.sqrt() / scale)
    square = constancy * ((nearest - mean) * scale) ** 2 + (1 - constancy) * varied
    bias = bias * scale
    return Moment(bias, torch.maximum(square, bias * bias))


def _carried(offset: Tensor, std: Tensor, step: Tensor) -> Tensor:
    """E[Q(x)] − Q(mean): what elements beyond the cell of their mean add. Zero without spread.

    ``offset``: Q(mean) − mean. Beyond a step of spread the whole error has no mean.
    """
    total = torch.zeros_like(offset)
    spread = (std * math.sqrt(2)).clamp_min(1e-300)
    for cell in range(_CELLS):
        reach = (cell + 0.5) * step
        above, below = ((reach + side * offset) / spread for side in (1, -1))
        total = total + step * (torch.erfc(above) - torch.erfc(below)) / 2
    return torch.where(std < step, total, -offset)


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
