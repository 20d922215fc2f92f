"""Signal to noise of every value under a recipe's casts: of the original as it is, and transformed.

Takes a part of a module, what is known of its values, and the recipe's choices; gives decibels
by value and graph. The original is cast as it is, at scale one; the transformed graph as its plan
stores it. Without data by prediction, with data also by running both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from unitify.analysis.forward import ForwardMoments
from unitify.capture.whole import Capture
from unitify.cast.noise_bound import exponents
from unitify.noise.cast_error import OperandCast
from unitify.noise.measured import measured_noise
from unitify.noise.moments import Place
from unitify.noise.operand_casts import operand_casts
from unitify.noise.predict import ValueNoise, predict_noise
from unitify.operations.rule_table import RuleTable
from unitify.plan.scale_plan import ScalePlan
from unitify.plan.uniform import uniform_plan
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.report.numerics import Sqnr


def unpredictable(recipe: Recipe) -> str:
    """Why noise under a recipe is not shown; "" where it is."""
    if recipe.values == "all":
        return f"signal to noise is not predicted for {recipe.name}, which casts stored values"
    if recipe.scaling == "amax":
        return f"signal to noise is not predicted for {recipe.name}, which scales at run time"
    if recipe.scaling == "constant":
        return f"signal to noise is not predicted for {recipe.name}: one scale for everything"
    return ""


def signal_to_noise(
    capture: Capture,
    plan: ScalePlan,
    choices: Iterable[Choice],
    rules: RuleTable,
    moments: ForwardMoments,
    batch: list[Any] | None = None,
) -> dict[str, Sqnr]:
    """The ``Sqnr`` of every value that noise reaches, by name.

    ``batch``: flat inputs on which both graphs are run with casts and without; None runs nothing.
    """
    cast = [c for c in choices if c.is_product and c.is_cast and c.forward]
    formats = {c.value: c.forward for c in cast}
    if not formats:
        return {}
    means = {c.value: c.mean for c in cast if c.mean}
    true = uniform_plan(capture, 1.0)
    casts: dict[str, dict[Place, OperandCast]] = {
        "original": operand_casts(capture, true, rules, formats),
        "transformed": operand_casts(
            capture, plan, rules, formats, exponents(cast, capture, rules), means
        ),
    }
    predicted = {g: predict_noise(capture, rules, c, moments).values for g, c in casts.items()}
    measured: dict[str, Mapping[str, ValueNoise]] = {}
    if batch is not None:
        measured = {g: measured_noise(capture, c, batch) for g, c in casts.items()}
    names = [n for n, noise in predicted["transformed"].items() if noise.error]
    return {
        name: Sqnr(
            {graph: _decibels(found.get(name)) for graph, found in predicted.items()},
            {graph: _decibels(found.get(name)) for graph, found in measured.items()},
        )
        for name in names
    }


def _decibels(noise: ValueNoise | None) -> float | None:
    if noise is None or not math.isfinite(noise.sqnr):
        return None
    return noise.sqnr
