"""How many values of a graph are near unit RMS, and in the range of a format, as shares.

Takes stored RMS; gives ``Shares``. Only RMS are known, so elements are taken to be normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from unitify.formats.losses import NOTABLE
from unitify.formats.table import E4M3, E5M2, FP16, Format
from unitify.report.report import is_unit

#: What values and gradients are cast to, by the bits of it.
FORMATS = {
    "forward": {"fp16": FP16, "fp8": E4M3},
    "backward": {"fp16": FP16, "fp8": E5M2},
}


@dataclass(frozen=True)
class Shares:
    """Of ``total`` values (or gradients), zeros and infinite ones left out, how many have unit RMS.

    - ``unit``: RMS in [1/2, 2]; ``octaves``: root mean square of log2 RMS, how far from unit they
      are; None without any
    - ``fp16``, ``fp8``: how many the format holds with at most a hundredth of their elements
      rounded to zero or saturated; FP8 is E4M3 for values, E5M2 for gradients
    """

    unit: int
    total: int
    octaves: float | None
    fp16: int
    fp8: int

    def share(self, what: str) -> float:
        """``what``: "unit", "fp16" or "fp8", over the total; NaN without any."""
        return getattr(self, what) / self.total if self.total else math.nan


def shares(found: Iterable[float | None], direction: str) -> Shares:
    """Count stored RMS of a ``direction``, "forward" or "backward"."""
    held = [x for x in found if x and math.isfinite(x)]
    squares = math.fsum(math.log2(x) ** 2 for x in held)
    formats = FORMATS[direction]
    return Shares(
        unit=sum(map(is_unit, held)),
        total=len(held),
        octaves=math.sqrt(squares / len(held)) if held else None,
        fp16=_within(held, formats["fp16"]),
        fp8=_within(held, formats["fp8"]),
    )


def _within(held: list[float], format: Format) -> int:
    low, high = normal_range(format)
    return sum(low <= rms <= high for rms in held)


@cache
def normal_range(format: Format, share: float = NOTABLE) -> tuple[float, float]:
    """The RMS between which ``format`` loses at most ``share`` of a normal distribution's elements.

    To zero at the lower end, beyond the largest number at the upper one.
    """
    unit = NormalDist()
    low = format.smallest_subnormal / 2 / unit.inv_cdf((1 + share) / 2)
    return low, format.largest / unit.inv_cdf(1 - share / 2)
