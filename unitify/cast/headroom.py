"""Headroom: the power of two between unit RMS and where an operand is rounded best.

An operand with outliers needs room above; an operand with many small elements needs room below.
The signal to noise of the cast decides. The choice is a constant of the graph: multiply, round,
divide.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from unitify.cast.distributions import Distributions
from unitify.estimates import Rms
from unitify.formats.magnitudes import Magnitudes
from unitify.formats.powers import exponent_of
from unitify.formats.signal_to_noise import GeneralizedNormal, best_scale, relative_error
from unitify.formats.table import FORMATS
from unitify.part import Part
from unitify.recipe.cast import Cast

#: The assumed kurtosis of a tensor without data, and the standard deviation of its predicted RMS in
#: octaves. Of the operands in the six nets of ``examples.nets``, nine in ten have a kurtosis below
#: 200 (a normal distribution has 3, their median is 15). Predictions are 1.5 octaves off (RMS).
KURTOSIS, OCTAVES = 200.0, 1.5
#: Steps an octave to which an RMS is rounded before its best scale is looked up.
_STEPS = 4
#: The most octaves of headroom that are tried, up and down.
_REACH = 20


def with_headroom(part: Part, distributions: Distributions) -> Part:
    """``part`` with the exponents at which operands and gradients are rounded best.

    ``distributions`` holds what is known. Every other tensor has the RMS of its estimate, which
    may be off, and tails that may be heavy.
    """

    def best(cast: Cast) -> int:
        unit = part.plan.unit(cast.value)
        estimate = part.estimates.get(cast.value, Rms())
        held = distributions.get(cast.place)
        if cast.is_gradient:
            return _best(cast.format, unit.bwd, estimate.backward or 0.0, held)
        rms = estimate.forward or 0.0
        if not cast.mean:
            return _best(cast.format, unit.fwd, rms, held)
        # The distribution is that of the operand, not of its deviation from the mean. The RMS of
        # the deviation is at least a hundredth of the operand's, because the mean may be off, too.
        shift = math.fsum(m * m for m in cast.mean) / len(cast.mean)
        rms = math.sqrt(max(rms * rms - shift, 1e-4 * rms * rms))
        return _best(cast.format, unit.fwd, rms, None)

    return part.with_casts(lambda cast: replace(cast, exponent=best(cast)))


def _best(format: str, scale: float, rms: float, distribution: Magnitudes | None) -> int:
    """log2 of what to multiply ``scale`` by; ``rms``: where there is no distribution."""
    rms = (distribution.rms if distribution is not None else rms) / scale
    if not (rms > 0 and math.isfinite(rms)):
        return 0
    if distribution is None:
        return _best_of_unsure(format, round(_STEPS * math.log2(rms)))
    return exponent_of(best_scale(FORMATS[format], rms, distribution))


@cache
def _best_of_unsure(format: str, steps: int) -> int:
    """log2 of the scale nearest to one, among those within 0.1 dB of the least expected error."""
    spread = range(-3 * _STEPS, 3 * _STEPS + 1)
    weights = [math.exp(-((u / _STEPS / OCTAVES) ** 2) / 2) for u in spread]
    reach = range(-_REACH, _REACH + 1)
    expected = {
        e: math.fsum(
            w * _error(format, steps - _STEPS * e + u) for w, u in zip(weights, spread, strict=True)
        )
        for e in reach
    }
    limit = min(expected.values()) * 10**0.01
    return min((e for e in reach if expected[e] <= limit), key=lambda e: (abs(e), e))


@cache
def _error(format: str, steps: int) -> float:
    tails = GeneralizedNormal.of_kurtosis(KURTOSIS)
    return relative_error(FORMATS[format], 2.0 ** (steps / _STEPS), tails)
