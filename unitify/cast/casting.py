"""The cast stage:  choose ─► search ─► cast ─► lower,  part by part.

Each step is a function of its own file. Every caller runs them through this one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unitify.arrival import loss_starts, units_of, watched
from unitify.capture.execution import LossFunction
from unitify.cast.distributions import measured_distributions, weight_distributions
from unitify.cast.headroom import with_headroom
from unitify.cast.insert import cast
from unitify.cast.joint import joint
from unitify.cast.lowering import lower
from unitify.cast.means import with_means
from unitify.cast.noise_bound import within_bound
from unitify.cast.repeated import repeated
from unitify.cast.search import searched
from unitify.diagnostics import Diagnostic, NothingCast, OutOfRange, RecipeInvalid, UnitifyError
from unitify.estimates import Rms
from unitify.formats.table import FORMATS
from unitify.part import Part, value_name
from unitify.recipe.choices import Choice, Patterns, choose
from unitify.recipe.recipe import Recipe
from unitify.rulebook.rule_table import RuleTable


def with_casts(part: Part, recipe: Recipe, rules: RuleTable) -> Part:
    """``part`` with the casts of its choices in its graph, and what these read as constants.

    Raises ``UnitifyError`` (U404) where the recipe requires FP8 and a contraction cannot run in it.
    """
    cast_graph, constants = cast(part, recipe, rules)
    device = next((p.device for p in part.capture.model.parameters()), torch.device("cpu"))
    lowered, noted = lower(cast_graph, part.choices, recipe, rules, device)
    if recipe.scaling == "unit":
        starts = loss_starts(part.capture, part.plan)
        lowered = watched(lowered, units_of(part.capture, part.plan), starts)
    held = {name: constant.to(device) for name, constant in constants.items()}
    return replace(part, graph=lowered, choices=noted, constants=held)


@dataclass(frozen=True)
class Evidence:
    """What a recipe chooses by, where it does, beside the estimates of parts.

    ``batches``: lists of flat inputs, by part. A part without batches runs on its example.
    """

    batches: Mapping[str, list[list[Any]]] = field(default_factory=dict)
    loss_fn: LossFunction | None = None


def cast_parts(
    parts: Iterable[Part],
    recipe: Recipe,
    rules: RuleTable,
    evidence: Evidence | None = None,
    made: Iterable[Choice] | None = None,
) -> tuple[tuple[Part, ...], tuple[Diagnostic, ...]]:
    """``parts`` with the casts of ``recipe``, and what the user should know.

    ``made``: choices to repeat, named as in ``module.casts``.

    Raises ``UnitifyError``: U404 as ``with_casts``; U301 where ``made`` does not fit; U402 where
    the recipe chooses by evidence and neither ``evidence`` nor ``made`` is given.
    """
    if recipe.is_chosen and evidence is None and made is None:
        problem = "headroom, center and min_sqnr are chosen by transform: pass on its module.casts"
        raise UnitifyError(RecipeInvalid(where=recipe.name, problem=problem))
    patterns = Patterns(recipe)
    notes: list[Diagnostic] = []
    made = None if made is None else tuple(made)
    found: list[Part] = []
    for part in parts:
        part = chosen(part, recipe, rules, patterns)
        if made is not None:
            part = repeated(part, made, rules)
        elif recipe.is_chosen and evidence is not None:
            part, noted = by_evidence(part, recipe, rules, evidence)
            notes += noted
        if recipe.joint and made is None:
            part = joint(part, rules)
        found.append(with_casts(part, recipe, rules))
    if recipe.scaling == "unit":
        notes += _out_of_range(found)
    return tuple(found), (*patterns.unmatched(), *notes, *_nothing_cast(found, recipe))


def _out_of_range(parts: Iterable[Part]) -> Iterator[Diagnostic]:
    found: list[OutOfRange] = []
    for part in parts:
        for own in (each for choice in part.choices for each in choice.casts):
            estimate, format = part.estimates.get(own.value, Rms()), FORMATS[own.format]
            rms = estimate.backward if own.is_gradient else estimate.forward
            if not rms or not math.isfinite(rms):
                continue
            held = math.log2(rms) - part.exponent(own)
            if not math.log2(format.smallest_subnormal) <= held <= math.log2(format.largest):
                name = value_name(part.name, own.value)
                of = f"the gradient of {name}" if own.is_gradient else name
                found.append(OutOfRange(where=name, value=of, rms=rms, format=format.name))
    if found:
        others = f", as of {len(found) - 1} others" if len(found) > 1 else ""
        yield replace(found[0], others=others)


def _nothing_cast(parts: Iterable[Part], recipe: Recipe) -> Iterator[Diagnostic]:
    choices = [choice for part in parts for choice in part.choices]
    if not any(choice.is_cast for choice in choices):
        reasons = Counter(c.reason for c in choices if c.is_contraction)
        ((reason, _),) = reasons.most_common(1) or [("it has no contraction", 0)]
        yield NothingCast(recipe=recipe.name, reason=reason)


def chosen(part: Part, recipe: Recipe, rules: RuleTable, patterns: Patterns | None = None) -> Part:
    """``part`` with the choices of ``recipe`` that need no evidence."""
    choices = choose(part.capture, recipe, rules, path=part.path, patterns=patterns)
    return replace(part, choices=choices)


def by_evidence(
    part: Part, recipe: Recipe, rules: RuleTable, evidence: Evidence
) -> tuple[Part, tuple[Diagnostic, ...]]:
    """``part`` with choices by its estimates and by runs; and what the user should know.

    Means come first. Then headroom is chosen for the deviations. Then noise decides what stays in
    BF16.
    """
    batches = evidence.batches.get(part.name)
    if "measured" in (recipe.headroom, recipe.center):
        batches = batches or [list(part.capture.example)]
    if {recipe.headroom, recipe.center} != {"none"}:
        found = searched(part, rules, recipe, batches)
        part = with_means(part, rules, found.means)
    if recipe.headroom != "none":
        known = weight_distributions(part, rules)
        if recipe.headroom == "measured":
            known = measured_distributions(part, batches, evidence.loss_fn)
        part = with_headroom(part, known, found.errors)
    if recipe.min_sqnr is None:
        return part, ()
    return within_bound(part, rules, recipe.min_sqnr, batches)
