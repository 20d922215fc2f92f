"""What is known of each judged tensor: predicted, or measured under its own cast.

A ``Figure`` holds the RMS as the cast sees it, and what the format makes of it. Predicted figures
take elements to be normally distributed with the predicted RMS; measured ones count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unitify.check.judged import Judged
from unitify.estimates import Estimates
from unitify.formats.band import share_flushed, share_saturated
from unitify.formats.signal_to_noise import snr
from unitify.formats.table import Format, quantise
from unitify.measure.tally import Tally


@dataclass(frozen=True)
class Figure:
    """One tensor under one cast. ``rms``: of what is stored, or cast; None where there is none.

    - ``kept``: signal to noise of the cast in decibels; ``whole``: what it would be if the format
      had no ends, so that the difference is what its range costs
    - ``flushed``: share of non-zero elements that become zero; ``saturated``: beyond the largest
    - ``non_finite``: how many elements are NaN or infinite; -1 where that is predicted
    """

    rms: float | None
    kept: float = math.inf
    whole: float = math.inf
    flushed: float = 0.0
    saturated: float = 0.0
    non_finite: int = 0
    is_measured: bool = False


def predicted(judged: Judged, estimates: Estimates) -> Figure:
    """The figure of a predicted (or merely measured) RMS."""
    estimate = estimates.get(judged.node.name)
    rms = getattr(estimate, judged.direction) if estimate is not None else None
    if rms is None:
        return Figure(None)
    if not math.isfinite(rms):
        return Figure(rms, non_finite=-1)
    stored = math.ldexp(rms, -judged.exponent)
    if judged.format is None or not stored > 0:
        return Figure(stored)
    return Figure(
        rms=stored,
        kept=snr(judged.format, stored),
        flushed=share_flushed(judged.format, stored),
        saturated=share_saturated(judged.format, stored),
    )


class CastTally(Tally):
    """Counts what the casts of ``judged`` do to every tensor that is shown."""

    def __init__(self, judged: Iterable[Judged]) -> None:
        super().__init__()
        self.casts: dict[tuple[str, int], set[tuple[Format, int]]] = {}
        for one in judged:
            if one.format is not None and one.is_cast:
                self.casts.setdefault(one.key, set()).add((one.format, one.exponent))
        self.counts: dict[tuple[str, int, Format, int], list[float]] = {}
        self.non_finite: dict[tuple[str, int], int] = {}

    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        """Count ``tensor`` as value (0) or gradient (1) of ``name``."""
        held = tensor.detach()
        if held.is_sparse:
            held = held.coalesce().values()
        super().add(name, direction, held)
        total = self.sums[name, direction][0]
        if not math.isfinite(total):
            count = int((~torch.isfinite(held)).sum())
            self.non_finite[name, direction] = self.non_finite.get((name, direction), 0) + count
        for format, exponent in self.casts.get((name, direction), ()):
            sums = _cast_sums(held, format, exponent)
            present = self.counts.setdefault((name, direction, format, exponent), [0.0] * len(sums))
            for position, number in enumerate(sums):
                present[position] += number

    def figure(self, judged: Judged, estimates: Estimates) -> Figure:
        """What was counted of one judged tensor; of one that is not cast, what its RMS says."""
        found = replace(
            predicted(judged, estimates),
            non_finite=self.non_finite.get(judged.key, 0),
            is_measured=True,
        )
        counts = self.counts.get((*judged.key, judged.format, judged.exponent))  # type: ignore[arg-type]
        if counts is None:
            return found
        signal, noise, unlimited, nonzero, flushed, saturated, elements = counts
        return replace(
            found,
            kept=_ratio(signal, noise),
            whole=_ratio(signal, unlimited),
            flushed=flushed / nonzero if nonzero else 0.0,
            saturated=saturated / elements if elements else 0.0,
        )


def _cast_sums(tensor: Tensor, format: Format, exponent: int) -> list[float]:
    """Squares, squared errors with and without ends, non-zeros, zeros made, clipped, elements."""
    x = tensor.to(torch.float32) * math.ldexp(1.0, -exponent)
    x = x[torch.isfinite(x)]
    if not x.numel():
        return [0.0] * 7
    endless = replace(
        format, dtype=None, min_exponent=-120, max_exponent=127, largest=(2 - 2**-7) * 2.0**127
    )
    wide = x.double()
    rounded, unlimited = quantise(x, format), quantise(x, endless)
    nonzero = x != 0
    return [
        float(wide.square().sum()),
        float((rounded.double() - wide).square().sum()),
        float((unlimited.double() - wide).square().sum()),
        float(nonzero.sum()),
        float((nonzero & (rounded == 0)).sum()),
        float((x.abs() > format.largest).sum()),
        float(x.numel()),
    ]


def _ratio(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf
