"""What a number format cannot hold of a value: underflow and overflow.

Takes magnitudes that were measured, or an RMS; gives ``Loss``: shares of the non-zero elements. To
nearest, a magnitude of at most half the smallest number becomes zero (ties to even).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unitify.formats.magnitudes import Magnitudes
from unitify.formats.table import BF16, E4M3, E5M2, FP16, Format

#: The formats that every report judges by, from the most range to the least.
JUDGED = (BF16, FP16, E5M2, E4M3)

#: From which share of its elements on a value is said to lose some.
NOTABLE = 0.01


@dataclass(frozen=True)
class Loss:
    """Shares of the non-zero elements of a value, in [0, 1].

    ``flushed`` to zero; ``subnormal``: held with fewer digits; ``saturated``: beyond the largest
    number.
    """

    flushed: float = 0.0
    subnormal: float = 0.0
    saturated: float = 0.0

    @property
    def worst(self) -> float:
        """The share that is lost outright, at either end."""
        return max(self.flushed, self.saturated)


def loss(format: Format, held: Magnitudes | float, scale: float = 1.0) -> Loss:
    """What ``format`` loses of x / ``scale``.

    ``held``: magnitudes of x, or its RMS where only that is known (a normal distribution is then
    assumed). Between two bounds of measured magnitudes elements are taken to be spread evenly; the
    ends of the 8-bit formats are such bounds, so that their shares are exact.
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
