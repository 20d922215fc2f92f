"""``Subject``: what is checked, in one form, whatever the target was.

A model as it is: its captures, with every scale one. A transformed module: the same captures around
its weights of now, with the scales of its plan. Either way with what a recipe does to each value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from unitify.capture.inputs import given_or_inferred
from unitify.capture.islands import record
from unitify.cast.casting import chosen
from unitify.diagnostics import Diagnostic, NothingTransformed, UnitifyError
from unitify.drift.measuring import true_capture
from unitify.module.assembly import parts_in, unscaled
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part, parts_of
from unitify.planning import uniformly_planned
from unitify.recipe.recipe import Recipe
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Subject:
    """``model``: as the user wrote it. ``parts``: its graphs around the weights of now.

    ``module``: what runs the parts together, for measuring; None where one graph is all.
    ``diagnostics``: what capture could not keep.
    """

    model: nn.Module
    parts: tuple[Part, ...]
    recipe: Recipe
    diagnostics: tuple[Diagnostic, ...]
    module: UnitScaledModule | None = None


def subject_of(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None,
    recipe: Recipe,
    rules: RuleTable,
) -> Subject:
    """``model``, original or transformed, as a subject.

    ``recipe``: of what is checked; a transformed module that has one of its own is checked by that.
    Raises ``UnitifyError``: U002 and U102 for inputs, U009 for a module that holds codes.
    """
    if isinstance(model, UnitScaledModule):
        return _of_module(model, recipe, rules)
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    recorded = record(model, args, kwargs)
    # What a recipe chooses by evidence (headroom, products left in BF16) is chosen by transform.
    plain = replace(recipe, headroom="none", min_sqnr=None)
    planned = uniformly_planned(parts_of(recorded.parts), recipe.loss_scale)
    parts = tuple(chosen(part, plain, rules) for part in planned.parts)
    module = None if recorded.whole is not None else unscaled(model, recorded.parts)
    return Subject(model, parts, plain, recorded.diagnostics, module)


def _of_module(module: UnitScaledModule, recipe: Recipe, rules: RuleTable) -> Subject:
    if module.is_inference:
        raise UnitifyError(NothingTransformed(module="a module for inference alone"))
    recipe = module.recipe or replace(recipe, headroom="none", min_sqnr=None)
    held = [part if part.choices else chosen(part, recipe, rules) for part in parts_in(module)]
    parts = tuple(
        replace(part, capture=true_capture(own))
        for part, own in zip(held, module.parts.values(), strict=True)
    )
    # What surrounds islands is the user's own code; a graph alone was made of a model.
    return Subject(module.original, parts, recipe, module.diagnostics, module)
