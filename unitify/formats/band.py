"""The RMS that a format holds well: where a normal distribution keeps nearly its best ratio.

Between two ends signal to noise hardly depends on the RMS; below, elements become subnormal
numbers and zero; above, they are clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from unitify.formats.signal_to_noise import snr
from unitify.formats.table import Format

#: Steps an octave at which the ratio is looked at.
_STEPS = 4
#: Octaves around one in which the ends are looked for.
_REACH = 40


@dataclass(frozen=True)
class Band:
    """RMS from ``low`` to ``high``, in which ``format`` keeps ``best`` dB less what was allowed."""

    low: float
    high: float
    best: float

    def octaves_outside(self, rms: float) -> float:
        """How far an RMS lies below (negative) or above the band, log2; zero inside."""
        if not rms > 0:
            return 0.0
        if rms < self.low:
            return math.log2(rms / self.low)
        return math.log2(rms / self.high) if rms > self.high else 0.0


@cache
def band_of(format: Format, allowed: float) -> Band:
    """Where a normal distribution keeps the format's best ratio less ``allowed`` decibels."""
    steps = range(-_REACH * _STEPS, _REACH * _STEPS + 1)
    found = {step: snr(format, 2.0 ** (step / _STEPS)) for step in steps}
    best = max(found.values())
    within = [step for step, ratio in found.items() if ratio >= best - allowed]
    return Band(2.0 ** (min(within) / _STEPS), 2.0 ** (max(within) / _STEPS), best)
