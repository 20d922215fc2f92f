"""Signal to noise of every value under a recipe's casts: in the original, and transformed.

Takes a part with choices, and inputs. Gives decibels by value and graph, from one run with casts
and one without. The original is cast at scale one, the transformed graph at the scales of its plan.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import operand_casts
from unitify.part import Part
from unitify.plan.uniform import uniform_plan
from unitify.recipe.recipe import Recipe
from unitify.report.numerics import GRAPHS, Ratios
from unitify.rulebook.rule_table import RuleTable


def not_shown(recipe: Recipe) -> str:
    """The reason that noise under a recipe is not shown; "" where it is."""
    if recipe.values == "all":
        return f"signal to noise is not shown for {recipe.name}, which casts stored values"
    if recipe.scaling == "amax":
        return f"signal to noise is not shown for {recipe.name}, which scales at run time"
    if recipe.scaling == "constant":
        return f"signal to noise is not shown for {recipe.name}: one scale for everything"
    return ""


def signal_to_noise(part: Part, rules: RuleTable, inputs: list[Any]) -> dict[str, Ratios]:
    """Value → signal to noise in decibels by graph, where noise reaches it. ``inputs``: flat."""
    plain = part.with_casts(lambda cast: replace(cast, exponent=0, mean=()))
    plain = replace(plain, plan=uniform_plan(part.capture))
    casts = operand_casts(plain, rules), operand_casts(part, rules)
    before, after = (measured_noise(part.capture, c, inputs) if c else {} for c in casts)
    return {
        name: {
            graph: ratio if math.isfinite(ratio) else None
            for graph, ratio in zip(GRAPHS, (before[name].sqnr, noise.sqnr), strict=True)
        }
        for name, noise in after.items()
        if noise.error
    }
