"""The elements of a value outside the range of a format: underflow and overflow.

Takes measured magnitudes, or an RMS; gives ``Loss``: shares of the non-zero elements. A magnitude
of at most half the smallest number rounds to zero (ties to even).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unitify.formats.magnitudes import Magnitudes
from unitify.formats.table import BF16, E4M3, E5M2, FP16, Format

#: The formats of every report, from the most range to the least.
JUDGED = (BF16, FP16, E5M2, E4M3)

#: The share of lost elements from which a report counts a value as losing some. A normal
#: distribution has one element in a hundred below an eightieth of its RMS.
NOTABLE = 0.01


@dataclass(frozen=True)
class Loss:
    """Shares of the non-zero elements of a value, in [0, 1].

    ``flushed``: become zero; ``subnormal``: have fewer digits; ``saturated``: exceed the largest
    number.
    """

    flushed: float = 0.0
    subnormal: float = 0.0
    saturated: float = 0.0

    @property
    def worst(self) -> float:
        """The larger of the shares that become zero or saturate."""
        return max(self.flushed, self.saturated)


def loss(format: Format, held: Magnitudes | float, scale: float = 1.0) -> Loss:
    """The loss of x / ``scale`` in ``format``.

    ``held``: magnitudes of x, or its RMS, for which a normal distribution is assumed. Elements
    between two bounds of a histogram are assumed to be uniform. The ends of the 8-bit formats are
    such bounds, so their shares are exact.
    """

    def below(bound: float, or_on: bool = False) -> float:
        if isinstance(held, Magnitudes):
            return held.below(bound * scale, or_on)
        return math.erf(bound * scale / held / math.sqrt(2)) if held > 0 else 1.0

    if isinstance(held, Magnitudes) and not held.total:
        return Loss()
    flushed = below(format.smallest_subnormal / 2, or_on=True)
    normal = below(format.smallest_normal)
    saturated = 1.0 - below(format.largest, or_on=True)
    return Loss(flushed, max(normal - flushed, 0.0), max(saturated, 0.0))
