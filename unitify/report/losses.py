"""What a number format cannot hold of a value: underflow and overflow.

Takes magnitudes that were measured, or an RMS; gives ``Loss``: shares of the non-zero elements. To
nearest, a magnitude of at most half the smallest number becomes zero (ties to even).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unitify.formats.table import BF16, E4M3, E5M2, FP16, Format
from unitify.report.magnitudes import Magnitudes

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
    assumed). Within a bin of measured magnitudes, an eighth of an octave, elements are taken to be
    spread evenly. Bounds of the 8-bit formats lie between bins, so that their shares are exact but
    for elements that are a bound themselves, which count to above.
    """

    def below(bound: float) -> float:
        return (
            held.below(bound * scale)
            if isinstance(held, Magnitudes)
            else _normal_below(held, bound * scale)
        )

    flushed = below(format.smallest_subnormal / 2)
    normal = below(format.smallest_normal)
    return Loss(flushed, max(normal - flushed, 0.0), max(1.0 - below(format.largest), 0.0))


def _normal_below(rms: float, bound: float) -> float:
    """The share of a normal distribution of this RMS with |x| < ``bound``."""
    return math.erf(bound / rms / math.sqrt(2)) if rms > 0 else 1.0
