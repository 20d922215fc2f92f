"""``Subject``: what is checked, in the same form for every target.

A plain model has its captures, and every scale is one. A transformed module has its captures around
its present weights, and the scales of its plan. Both have the choices of a recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """``model``: as the user wrote it. ``parts``: its graphs around its present weights.

    ``module``: runs several parts together, for measuring; None where there is one graph.
    ``diagnostics``: what capture could not keep. ``is_transformed``: are scales those of a plan?
    """

    model: nn.Module
    parts: tuple[Part, ...]
    recipe: Recipe
    diagnostics: tuple[Diagnostic, ...]
    module: UnitScaledModule | None = None
    is_transformed: bool = False


def subject_of(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any] | None,
    recipe: Recipe,
    rules: RuleTable,
) -> Subject:
    """``model``, original or transformed, as a subject.

    ``recipe``: the recipe to check by. A transformed module with its own recipe is checked by that.
    Raises ``UnitifyError``: U002 and U102 for inputs, U009 for a module that holds codes.
    """
    if isinstance(model, UnitScaledModule):
        return _of_module(model, recipe, rules)
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    recorded = record(model, args, kwargs)
    subject = as_it_is(model, parts_of(recorded.parts), recipe, rules)
    module = None if recorded.whole is not None else unscaled(model, recorded.parts)
    return replace(subject, diagnostics=recorded.diagnostics, module=module)


def as_it_is(model: nn.Module, parts: Iterable[Part], recipe: Recipe, rules: RuleTable) -> Subject:
    """``model`` with the casts of ``recipe`` on true values."""
    # Headroom, and what stays in BF16, are chosen by evidence, which ``transform`` has.
    plain = replace(recipe, headroom="none", min_sqnr=None)
    planned = uniformly_planned(tuple(parts), recipe.loss_scale)
    return Subject(model, tuple(chosen(part, plain, rules) for part in planned.parts), plain, ())


def _of_module(module: UnitScaledModule, recipe: Recipe, rules: RuleTable) -> Subject:
    if module.is_inference:
        raise UnitifyError(NothingTransformed(module="a module for inference alone"))
    recipe = module.recipe or replace(recipe, headroom="none", min_sqnr=None)
    held = [part if part.choices else chosen(part, recipe, rules) for part in parts_in(module)]
    parts = tuple(
        replace(part, capture=true_capture(own))
        for part, own in zip(held, module.parts.values(), strict=True)
    )
    # The user's code is that around islands, or the original model of a single graph.
    return Subject(module.original, parts, recipe, module.diagnostics, module, is_transformed=True)
