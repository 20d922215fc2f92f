"""The cast stage for a whole module:  choose ─► cast ─► lower,  part by part.

Each step is a function of its own file; here they are put together, once for every caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from unitify.arrival import units_of, watched
from unitify.capture.execution import LossFunction
from unitify.capture.islands import path_of
from unitify.capture.whole import Capture
from unitify.cast.distributions import measured_distributions, weight_distributions
from unitify.cast.headroom import with_headroom
from unitify.cast.insert import cast
from unitify.cast.lowering import lower
from unitify.cast.means import with_means
from unitify.cast.noise_bound import within_bound
from unitify.cast.search import searched, with_scales
from unitify.diagnostics import Diagnostic, RecipeInvalid, UnitifyError
from unitify.estimates import Estimates
from unitify.module.assembly import value_name
from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice, Patterns, choose
from unitify.recipe.recipe import Recipe
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Casts:
    """A graph with casts in it, by which recipe, and what was chosen for each value.

    ``constants``: what it reads beside the module's attributes: means of operands, by name.
    """

    graph: fx.Graph
    recipe: Recipe
    choices: tuple[Choice, ...]
    constants: Mapping[str, torch.Tensor]


def with_casts(
    graph: fx.Graph,
    choices: tuple[Choice, ...],
    recipe: Recipe,
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
) -> Casts:
    """``graph``, which ``plan`` made of ``capture``, with the casts of ``choices``.

    Raises ``UnitifyError`` (U404) where the recipe insists on FP8 and a product cannot run on it.
    """
    cast_graph, constants = cast(graph, choices, recipe, capture, plan, rules)
    device = next((p.device for p in capture.model.parameters()), torch.device("cpu"))
    lowered, noted = lower(cast_graph, choices, recipe, rules, device)
    if recipe.scaling == "unit":
        lowered = watched(lowered, units_of(capture, plan))
    held = {name: constant.to(device) for name, constant in constants.items()}
    return Casts(lowered, recipe, noted, held)


@dataclass(frozen=True)
class Evidence:
    """What is known of a module's values, by part: for recipes that choose by it.

    ``batches``: lists of flat inputs; a part without any has its capture's example.
    """

    estimates: Mapping[str, Estimates]
    batches: Mapping[str, list[list[Any]]] = field(default_factory=dict)
    loss_fn: LossFunction | None = None


def cast_module(
    module: UnitScaledModule,
    recipe: Recipe,
    rules: RuleTable,
    evidence: Evidence | None = None,
    made: Iterable[Choice] | None = None,
) -> tuple[Diagnostic, ...]:
    """Cast every part of ``module`` by ``recipe``, in place. Returns what the user should know.

    ``made``: choices of products to repeat, by the names that ``module.casts`` has.

    Raises ``UnitifyError``: U404 as ``with_casts``; U402 where the recipe chooses by evidence, and
    neither that nor ``made`` is there.
    """
    if recipe.is_chosen and evidence is None and made is None:
        problem = "headroom, center and min_sqnr are chosen by transform: pass on its module.casts"
        raise UnitifyError(RecipeInvalid(where=recipe.name, problem=problem))
    patterns = Patterns(recipe)
    notes: list[Diagnostic] = []
    held = {choice.value: choice for choice in made or () if choice.is_product}
    found: dict[str, Casts] = {}
    for name, part in module.parts.items():
        chosen = choose(part.capture, recipe, rules, path=path_of(name), patterns=patterns)
        if made is not None:
            chosen = tuple(_repeated(c, held.get(value_name(name, c.value))) for c in chosen)
        elif recipe.is_chosen and evidence is not None:
            chosen, noted = by_evidence(
                chosen, name, part.capture, part.plan, recipe, rules, evidence
            )
            notes += noted
        found[name] = with_casts(part.graph, chosen, recipe, part.capture, part.plan, rules)
    for name, part in module.parts.items():
        part.take_casts(found[name].graph, recipe, found[name].choices, found[name].constants)
    module.recipe = recipe
    return (*patterns.unmatched(), *notes)


def _repeated(choice: Choice, held: Choice | None) -> Choice:
    return choice if held is None else replace(held, value=choice.value)


def by_evidence(
    choices: tuple[Choice, ...],
    name: str,
    capture: Capture,
    plan: ScalePlan,
    recipe: Recipe,
    rules: RuleTable,
    evidence: Evidence,
) -> tuple[tuple[Choice, ...], tuple[Diagnostic, ...]]:
    """Means first, then headroom for what is left, then what its noise leaves in BF16."""
    batches = evidence.batches.get(name)
    if "measured" in (recipe.headroom, recipe.center):
        batches = batches or [list(capture.example)]
    if {recipe.headroom, recipe.center} != {"none"}:
        found = searched(choices, capture, plan, rules, recipe, batches)
        choices = with_means(choices, capture, rules, found.means)
    if recipe.headroom != "none":
        known = weight_distributions(choices, capture, rules)
        if recipe.headroom == "measured":
            known = measured_distributions(choices, capture, rules, batches, evidence.loss_fn)
        choices = with_headroom(choices, capture, plan, rules, evidence.estimates[name], known)
        choices = with_scales(choices, capture, plan, rules, found)
    if recipe.min_sqnr is None:
        return choices, ()
    return within_bound(choices, capture, plan, rules, recipe.min_sqnr, batches)
