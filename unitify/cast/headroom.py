"""Headroom: by which power of two an operand is moved within its format before it is rounded.

Unit RMS is where values are stored. An operand with outliers is rounded best further down in the
range, one in a format without much below further up; signal to noise says where. What was chosen is
a constant of the graph: multiply, round, divide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from unitify.capture.whole import Capture
from unitify.cast.distributions import Distributions
from unitify.estimates import Estimates, Rms
from unitify.formats.magnitudes import Magnitudes
from unitify.formats.powers import exponent_of
from unitify.formats.signal_to_noise import GeneralizedNormal, best_scale, relative_error
from unitify.formats.table import FORMATS
from unitify.noise.operand_casts import operand_casts
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operand_nodes

#: What is assumed of a tensor without data. Of the operands of the six nets of ``examples.nets``
#: nine in ten have a kurtosis below this (a normal distribution has 3; the median is 15), and the
#: RMS that is predicted of them is this many octaves off, root mean square.
KURTOSIS, OCTAVES = 200.0, 1.5
#: Steps an octave to which an RMS is rounded before its best scale is looked up.
_STEPS = 4
#: How many octaves from where it is stored a tensor may be rounded.
_REACH = 20


def with_headroom(
    choices: Iterable[Choice],
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    estimates: Estimates,
    distributions: Distributions,
) -> tuple[Choice, ...]:
    """``choices`` with the exponents at which operands and gradients of products are rounded best.

    ``distributions``: as far as they are known. Of the rest an RMS is, by ``estimates``, that may
    be off, and so may be the tails.
    """
    choices = tuple(choices)
    cast = {c.value: c for c in choices if c.is_product and c.is_cast}
    casts = operand_casts(cast.values(), capture, plan, rules)
    values = {
        (node.name, name, index): operand.name
        for node in capture.graph.nodes
        if node.name in cast
        for name, index, operand in operand_nodes(node)
    }
    exponents: dict[str, list[int]] = {name: [] for name in cast}
    for place, operand in casts.items():
        rms = estimates.get(values[place], Rms()).forward or 0.0
        if operand.mean:
            # What is left of it; no less than a hundredth, for the mean may be off, too.
            shift = math.fsum(m * m for m in operand.mean) / len(operand.mean)
            rms = math.sqrt(max(rms * rms - shift, 1e-4 * rms * rms))
        # What is known is of the operand, not of its deviation.
        held = None if operand.mean else distributions.get(place)
        exponents[place[0]].append(_best(operand.format.name, operand.scale, rms, held))
    for name, choice in cast.items():
        rms = estimates.get(name, Rms()).backward or 0.0
        scale, held = plan.unit(name).bwd, distributions.get((name, "", 0))
        exponents[name].append(_best(choice.backward, scale, rms, held) if choice.backward else 0)
    return tuple(
        replace(c, exponents=tuple(exponents[c.value])) if c.value in exponents else c
        for c in choices
    )


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
    """Of the scales within a tenth of a decibel of the least expected error the nearest to one."""
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
