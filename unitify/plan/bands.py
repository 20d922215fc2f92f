"""Bands: the exponents that each value and gradient may have.

A band lies around the RMS. For a value that is held true it holds zero alone. Takes estimates;
gives a ``Bands``, within which the planner chooses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.plan.fixed import fixed_values, parameter_of
from unitify.rulebook.extremes import extremes
from unitify.rulebook.rule_table import RuleTable

#: Half the width, in octaves, of the band of a narrow value: of a measured RMS, and of a predicted
#: one, which may be off by half an octave (docs/results/estimates.md).
TOLERANCE, PREDICTED_TOLERANCE = 1.0, 0.5
#: The same on a wide carrier. FP16 would hold eight octaves below and nine above such a value. With
#: six, at most one operation in ten has a rescale in the models of docs/results/rescales.md.
WIDE_TOLERANCE = 6.0
#: log2 of the least RMS of a gradient in float32 that the scale of its value makes smaller. From
#: 2^-102 on all digits of its sums are normal numbers, and its elements lie some octaves below.
LEAST_GRADIENT = -96
#: The most octaves of a scale from the typical RMS of its direction. An RMS further away comes from
#: masking constants, zeros or a broken estimate. log2 of a factor is a sum of three such distances,
#: so that with a third of the range of float32 no factor overflows.
LIMIT = 42
#: log2 of the least scale of a cast; the greatest is its inverse. Formats and headroom add some
#: octaves, and the sum is a normal number of float32.
LEAST_UNIT = -110


def tolerance_of(is_sure: bool) -> float:
    """The tolerance of estimates. ``is_sure``: measured on data, neither drawn nor predicted."""
    return TOLERANCE if is_sure else PREDICTED_TOLERANCE


@dataclass(frozen=True)
class ScaleBand:
    """Exponents from ``low`` to ``high``, and the ``wanted`` log2 RMS; all 0 for a true value."""

    low: int
    high: int
    wanted: float

    @property
    def limits(self) -> tuple[int, int]:
        """The least exponent and the greatest."""
        return self.low, self.high

    @property
    def nearest(self) -> int:
        """Zero where the band holds it, else the exponent nearest to the RMS."""
        if self.low <= 0 <= self.high:
            return 0
        return min(max(round(self.wanted), self.low), self.high)


class Bands:
    """Bands of the values of a capture. ``held``: values whose scales stay one."""

    def __init__(
        self,
        capture: Capture,
        estimates: Estimates,
        rules: RuleTable,
        held: Iterable[fx.Node] = (),
    ) -> None:
        self.capture = capture
        self.estimates = estimates
        self.fixed = fixed_values(capture) | set(held)
        self.extremes = extremes(capture.graph, rules, capture.example, capture.attribute)
        #: log2 of the typical RMS. Values are near one; gradients all shrink with the loss's mean.
        self.typical: Mapping[str, int] = {
            "forward": 0,
            "backward": _clamped(_median_log(e.backward for e in estimates.values()), 0),
        }

    def of(self, node: fx.Node, direction: str, tolerance: float) -> ScaleBand:
        """The band of a value or its gradient; the widest there is where no RMS is known."""
        held = self.extremes.values if direction == "forward" else self.extremes.met
        if node in self.fixed or node in held:
            return ScaleBand(0, 0, 0.0)
        middle = self.typical[direction]
        log = self.log_rms(node, direction)
        if log is None:
            band = ScaleBand(middle - LIMIT, middle + LIMIT, middle)
        else:
            low, high = math.ceil(log - tolerance), math.floor(log + tolerance)
            nearest = round(log)
            low, high = (_clamped(e, middle) for e in (min(low, nearest), max(high, nearest)))
            band = ScaleBand(low, high, log)
        if direction == "forward" and parameter_of(self.capture, node) is not None:
            return self._unrounded(node, band)
        return band

    def carried(self, node: fx.Node, tolerance: float) -> ScaleBand:
        """The band of a value whose gradient has the inverse scale.

        That brings no gradient nearer to subnormal numbers, which would lose digits of the model's.
        """
        band = self.of(node, "forward", tolerance)
        rms = self.estimates.get(node.name, Rms()).backward
        if rms is None or not 0 < rms < math.inf:
            return band
        low = max(band.low, min(0, math.ceil(LEAST_GRADIENT - math.log2(rms))))
        return ScaleBand(low, band.high, band.wanted) if low <= band.high else ScaleBand(0, 0, 0.0)

    def unit(self, node: fx.Node, direction: str, scale: int, tolerance: float) -> int:
        """A scale at which the value is near unit RMS: its own ``scale`` if it is one.

        A cast multiplies by its scale alone, so that any power of two of float32 will do. A
        predicted RMS makes no sense far from the typical one.
        """
        is_sure = tolerance >= TOLERANCE
        log = (self._any_log if is_sure else self.log_rms)(node, direction)
        if log is None or abs(log - scale) <= tolerance:
            return scale
        return min(max(round(log), LEAST_UNIT), -LEAST_UNIT)

    def log_rms(self, node: fx.Node, direction: str) -> float | None:
        """log2 of an RMS; None where it is unknown or makes no sense."""
        log = self._any_log(node, direction)
        return log if log is not None and abs(log - self.typical[direction]) <= LIMIT else None

    def _any_log(self, node: fx.Node, direction: str) -> float | None:
        made = self.capture.reparametrization
        if made is not None and direction == "forward" and node.name in made.outputs:
            # Only its multiplier takes it: for the scheme the two are one operation.
            return None
        rms = getattr(self.estimates.get(node.name, Rms()), direction)
        if rms is None or not rms > 0 or not math.isfinite(rms):
            return None
        return math.log2(rms)

    def _unrounded(self, node: fx.Node, band: ScaleBand) -> ScaleBand:
        """The band without exponents that would move numbers of a weight below the normal range."""
        weight: Tensor = self.capture.attribute(str(node.target)).detach()
        high = band.high
        while high > 0 and not weight.is_meta and _rounds(weight, math.ldexp(1.0, high)):
            high = min(high - 1, 0) if band.low > 0 else high - 1
        return ScaleBand(min(band.low, high), high, band.wanted)


def _rounds(weight: Tensor, factor: float) -> bool:
    return bool(((weight / factor) * factor).ne(weight).any())


def _clamped(exponent: int, middle: int) -> int:
    """``exponent``, or the nearest one within the limit around ``middle``.

    ``middle`` is limited, too: gradients of inputs are true, so that a factor there is as far from
    one as the scale of the gradient.
    """
    return min(max(exponent, middle - LIMIT), middle + LIMIT)


def _median_log(values: Iterable[float | None]) -> int:
    logs = [math.log2(v) for v in values if v is not None and v > 0 and math.isfinite(v)]
    return round(statistics.median(logs)) if logs else 0
