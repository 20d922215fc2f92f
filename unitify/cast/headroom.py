"""Headroom: the power of two between unit RMS and where an operand is rounded best.

An operand with outliers needs room above; an operand with many small elements needs room below.
The errors that a search found decide, else the signal to noise of the cast. The choice is a
constant of the graph: multiply, round, divide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial

from unitify.cast.distributions import Distributions
from unitify.cast.search import Errors
from unitify.estimates import Rms
from unitify.formats.magnitudes import Magnitudes
from unitify.formats.powers import exponent_of
from unitify.formats.signal_to_noise import GeneralizedNormal, best_scale, relative_error
from unitify.formats.table import FORMATS
from unitify.part import Part
from unitify.recipe.cast import Cast, Place

#: The assumed kurtosis of a tensor without data. Of the operands in the six nets of
#: ``examples.nets``, nine in ten have a kurtosis below it (a normal distribution has 3, their
#: median is 15).
KURTOSIS = 200.0
#: The standard deviation of an RMS in octaves: of a predicted one, by those nets (root mean
#: square), and of a measured one on other inputs, an assumption whose effect ``examples.ptq`` shows
#: ("measured, headroom").
_PREDICTED, _MEASURED = 1.5, 1.0
#: Decibels by which an expected error may be above the least.
_TOLERANCE = 0.1
#: Steps an octave to which an RMS is rounded before its best scale is looked up.
_STEPS = 4
#: The most octaves of headroom that are tried, and by which an RMS may be off, up and down.
_REACH, _SPREAD = 20, 3


def with_headroom(part: Part, distributions: Distributions, errors: Mapping[Place, Errors]) -> Part:
    """``part`` with the exponents at which operands and gradients are rounded best.

    ``errors``: of each scale of a cast, where a search found them. ``distributions`` holds what
    else is known. Every other tensor has the RMS of its estimate, which may be off, and tails that
    may be heavy.
    """

    def best(cast: Cast) -> int:
        unit = part.plan.unit(cast.value)
        if (found := _best_found(errors.get(cast.place, {}))) is not None:
            return found - exponent_of(unit.fwd)
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


def _best_found(errors: Errors) -> int | None:
    """The middle of the powers of two at which the expected error is about the least.

    None without errors that are numbers: an operand may hold an infinity or NaN.
    """
    known = {e: error for e, error in errors.items() if math.isfinite(error)}
    reach = (e for e in known if all(e + u in known for u in range(-_SPREAD, _SPREAD + 1)))
    near = _near({e: _expected(known.__getitem__, e, 1, _MEASURED) for e in reach})
    return near[len(near) // 2] if near else None


@cache
def _best_of_unsure(format: str, steps: int) -> int:
    """log2 of the scale nearest to one, among those at which the expected error is the least."""
    error, reach = partial(_error, format), range(-_REACH, _REACH + 1)
    near = _near({e: _expected(error, steps - _STEPS * e, _STEPS, _PREDICTED) for e in reach})
    return min(near, key=lambda e: (abs(e), e))


def _expected(error: Callable[[int], float], at: int, steps: int, octaves: float) -> float:
    """The error ``at`` a scale, expected up to a factor, for an RMS that may be octaves off.

    ``error`` takes ``steps`` an octave. ``octaves``: the standard deviation.
    """
    spread = range(-_SPREAD * steps, _SPREAD * steps + 1)
    return math.fsum(math.exp(-((u / steps / octaves) ** 2) / 2) * error(at + u) for u in spread)


def _near(expected: Mapping[int, float]) -> list[int]:
    limit = min(expected.values(), default=0.0) * 10 ** (_TOLERANCE / 10)
    return sorted(e for e, error in expected.items() if error <= limit)


@cache
def _error(format: str, steps: int) -> float:
    tails = GeneralizedNormal.of_kurtosis(KURTOSIS)
    return relative_error(FORMATS[format], 2.0 ** (steps / _STEPS), tails)
