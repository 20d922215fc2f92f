"""The band of RMS in which a format has nearly its best signal to noise on a normal distribution.

Within the band, signal to noise hardly depends on the RMS. Below it, elements become subnormal or
zero. Above it, they saturate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from unitify.formats.signal_to_noise import snr
from unitify.formats.table import Format

#: Steps of RMS an octave, and the octaves around RMS 1 that are searched: E5M2 has 32.
_STEPS, _REACH = 4, 40


@dataclass(frozen=True)
class Band:
    """The RMS from ``low`` to ``high``; ``best``: the highest signal to noise in it, in dB."""

    low: float
    high: float
    best: float

    def octaves_outside(self, rms: float) -> float:
        """The distance of an RMS below (negative) or above the band, log2; zero inside."""
        if not rms > 0:
            return 0.0
        if rms < self.low:
            return math.log2(rms / self.low)
        return math.log2(rms / self.high) if rms > self.high else 0.0


@cache
def band_of(format: Format, allowed: float) -> Band:
    """The band in which a normal distribution is within ``allowed`` dB of the format's best."""
    steps = range(-_REACH * _STEPS, _REACH * _STEPS + 1)
    found = {step: snr(format, 2.0 ** (step / _STEPS)) for step in steps}
    best = max(found.values())
    within = [step for step, ratio in found.items() if ratio >= best - allowed]
    return Band(2.0 ** (min(within) / _STEPS), 2.0 ** (max(within) / _STEPS), best)
