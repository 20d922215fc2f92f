"""``Subject``: what is checked, in one form, whatever the target was.

A model as it is: its captures, with every scale one. A transformed module: the same captures around
its weights of now, with the scales of its plan. Either way with what a recipe does to each value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from unitify.capture.inputs import given_or_inferred
from unitify.capture.islands import path_of, record
from unitify.capture.whole import Capture
from unitify.diagnostics import Diagnostic, NothingTransformed, UnitifyError
from unitify.drift.measuring import true_capture
from unitify.module.assembly import unscaled
from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.scale_plan import ScalePlan
from unitify.plan.uniform import uniform_plan
from unitify.recipe.choices import Choice, choose
from unitify.recipe.recipe import Recipe
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Piece:
    """One graph of a subject: the weights of now, the scales at which it stores, what is cast."""

    name: str
    capture: Capture
    plan: ScalePlan
    casts: tuple[Choice, ...]


@dataclass(frozen=True)
class Subject:
    """``model``: as the user wrote it. ``pieces``: its graphs, by part; usually one, named "".

    ``module``: what runs the pieces together, for measuring; None where one graph is all.
    ``diagnostics``: what capture could not keep.
    """

    model: nn.Module
    pieces: Mapping[str, Piece]
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
    plain = dataclasses.replace(recipe, headroom="none", min_sqnr=None)
    pieces = {
        name: Piece(
            name,
            captured,
            uniform_plan(captured, recipe.loss_scale),
            choose(captured, plain, rules, path=path_of(name)),
        )
        for name, captured in recorded.parts.items()
    }
    module = None if recorded.whole is not None else unscaled(model, recorded.parts)
    return Subject(model, pieces, plain, recorded.diagnostics, module)


def _of_module(module: UnitScaledModule, recipe: Recipe, rules: RuleTable) -> Subject:
    if module.is_inference:
        raise UnitifyError(NothingTransformed(module="a module for inference alone"))
    recipe = module.recipe or dataclasses.replace(recipe, headroom="none", min_sqnr=None)
    pieces = {
        name: Piece(
            name,
            true_capture(part),
            part.plan,
            part.casts or choose(part.capture, recipe, rules, path=path_of(name)),
        )
        for name, part in module.parts.items()
    }
    # What surrounds islands is the user's own code; a graph alone was made of a model.
    return Subject(module.original, pieces, recipe, module.diagnostics, module)
