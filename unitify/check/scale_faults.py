"""Faults of scale: tensors that a format, or the unit band, does not hold.

Takes judged tensors and what is known of each; gives faults, without a line or a cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from unitify.check.judged import Judged
from unitify.check.settings import Limits
from unitify.diagnostics import (
    Diagnostic,
    FlushedToZero,
    OutsideUnitBand,
    PrecisionLost,
    Saturated,
    ValueNotFinite,
)
from unitify.formats.band import Band, band_of
from unitify.formats.losses import loss
from unitify.formats.magnitudes import Magnitudes
from unitify.formats.signal_to_noise import snr
from unitify.formats.table import BlockFormat, Format


@dataclass(frozen=True)
class Fault:
    """A diagnostic of a judged tensor, its severity and level, and its octaves outside."""

    judged: Judged
    diagnostic: Diagnostic
    severity: str
    level: float
    octaves: float


#: The true RMS of a tensor, and the distribution of its magnitudes if it was measured.
Known = tuple[float | None, Magnitudes | None]


def faults(judged: Judged, known: Known, limits: Limits, is_transformed: bool) -> Iterator[Fault]:
    """Everything that is wrong with one tensor, the clearest first.

    A cast tensor is judged by its magnitudes where they were measured. Every other tensor is judged
    as if it were normally distributed. ``is_transformed``: ``transform`` has made the model, so no
    advice leads there.
    """
    true, held = known
    if true is None:
        return
    tensor = "gradient" if judged.direction == "backward" else "value"
    severity = "error" if judged.is_cast or judged.format is None else "warning"
    special = int(held.special) if held is not None else 0
    if special or not math.isfinite(true):
        count = f"{special} elements" if special else f"its RMS is predicted to be {true}"
        found = ValueNotFinite(tensor=tensor, count=count)
        yield Fault(judged, found, "error", math.log2(max(special, 1)), math.inf)
        return
    rms = math.ldexp(true, -judged.exponent)
    if not rms > 0:
        return
    band = _band(judged, limits)
    octaves = band.octaves_outside(rms)

    def advice(up: bool | None = None) -> str:
        return _advice(rms, up, is_transformed)

    def fault(diagnostic: Diagnostic, level: float) -> Fault:
        return Fault(judged, diagnostic, severity, level, octaves)

    if judged.format is None:
        if octaves:
            outside = OutsideUnitBand(
                tensor=tensor, rms=rms, low=band.low, high=band.high, advice=advice()
            )
            yield fault(outside, abs(octaves))
        return
    format, counted = judged.format.name, held if judged.is_cast else None
    lost = loss(judged.format, counted or true, math.ldexp(1.0, judged.exponent))
    if judged.is_cast and lost.flushed > limits.flushed:
        share = lost.flushed
        flushed = FlushedToZero(
            tensor=tensor, share=share, rms=rms, format=format, advice=advice(up=True)
        )
        yield fault(flushed, abs(octaves) or math.log2(share))
    if judged.is_cast and lost.saturated > limits.saturated:
        share = lost.saturated
        clipped = Saturated(
            tensor=tensor, share=share, rms=rms, format=format, advice=advice(up=False)
        )
        yield fault(clipped, abs(octaves) or math.log2(share))
    kept, whole = snr(judged.format, rms), math.inf
    if counted is not None:
        stored = math.ldexp(counted.rms, -judged.exponent)
        kept = snr(judged.format, stored, counted)
        whole = snr(_endless(judged.format), stored, counted)
    decibels = min(band.best, whole) - kept
    if decibels > limits.noise:
        precision = PrecisionLost(
            tensor=tensor, rms=rms, format=format, kept=kept, best=band.best, advice=advice()
        )
        yield fault(precision, abs(octaves) or decibels / 6.02)


@cache
def _endless(format: Format) -> Format:
    """The format without ends. What it keeps more than the format is what the range costs."""
    if isinstance(format, BlockFormat):
        return replace(format, scale=_endless(format.scale))
    largest = (2 - 2**-7) * 2.0**127
    return replace(format, dtype=None, min_exponent=-120, max_exponent=127, largest=largest)


def _band(judged: Judged, limits: Limits) -> Band:
    if judged.format is None:
        return Band(*limits.band, best=math.inf)
    return band_of(judged.format, limits.noise)


def _advice(rms: float, up: bool | None, is_transformed: bool) -> str:
    """How to bring an RMS near one: by a factor, unless that leads away from where it should go.

    ``up``: too many elements are small; False: too many are large.
    """
    exponent = -round(math.log2(rms))
    if exponent == 0 or (up is not None and (exponent > 0) is not up):
        return (
            "No factor helps, because its magnitudes are too far apart. Leave it out of the casts, "
            "or cast it to a format of more range"
        )
    scaled = f"Scale it by 2^{exponent}"
    return scaled if is_transformed else f"{scaled}, or let unitify.transform do so"
