"""Findings about scale: tensors that a format, or the unit band, does not hold.

Takes judged tensors with their figures; gives faults, which know neither place nor cause.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from unitify.check.figures import Figure
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


@dataclass(frozen=True)
class Fault:
    """A diagnostic of a judged tensor, how bad it is, and how many octaves it is outside."""

    judged: Judged
    diagnostic: Diagnostic
    severity: str
    level: float
    octaves: float


def faults(judged: Judged, figure: Figure, limits: Limits) -> Iterator[Fault]:
    """Everything that is wrong with one tensor, the plainest first."""
    tensor = "gradient" if judged.direction == "backward" else "value"
    severity = "error" if judged.is_cast or judged.format is None else "warning"
    if figure.rms is None:
        return
    if figure.non_finite:
        counted = f"{figure.non_finite} elements"
        count = counted if figure.non_finite > 0 else f"its RMS is predicted to be {figure.rms}"
        found = ValueNotFinite(tensor=tensor, count=count)
        level = math.log2(max(figure.non_finite, 1))
        yield Fault(judged, found, "error", level, math.inf)
        return
    if not figure.rms > 0:
        return
    band = _band(judged, limits)
    octaves = band.octaves_outside(figure.rms)

    def fault(diagnostic: Diagnostic, level: float) -> Fault:
        return Fault(judged, diagnostic, severity, level, octaves)

    rms, factor = figure.rms, _factor(figure.rms)
    if judged.format is None:
        if octaves:
            outside = OutsideUnitBand(
                tensor=tensor, rms=rms, low=band.low, high=band.high, factor=factor
            )
            yield fault(outside, abs(octaves))
        return
    format = judged.format.name
    if judged.is_cast and figure.flushed > limits.flushed:
        share = figure.flushed
        flushed = FlushedToZero(tensor=tensor, share=share, rms=rms, format=format, factor=factor)
        yield fault(flushed, abs(octaves) or math.log2(share))
    if judged.is_cast and figure.saturated > limits.saturated:
        share = figure.saturated
        clipped = Saturated(tensor=tensor, share=share, rms=rms, format=format, factor=factor)
        yield fault(clipped, abs(octaves) or math.log2(share))
    lost = min(band.best, figure.whole) - figure.kept
    if lost > limits.noise:
        precision = PrecisionLost(
            tensor=tensor, rms=rms, format=format, kept=figure.kept, best=band.best, factor=factor
        )
        yield fault(precision, abs(octaves) or lost / 6.02)


def _band(judged: Judged, limits: Limits) -> Band:
    if judged.format is None:
        return Band(*limits.band, best=math.inf)
    return band_of(judged.format, limits.noise)


def _factor(rms: float) -> str:
    """The power of two that brings an RMS nearest to one."""
    return f"2^{-round(math.log2(rms))}"
