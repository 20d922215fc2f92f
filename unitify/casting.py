"""The cast stage for a whole module:  choose ─► cast ─► lower,  part by part.

Each step is a function of its own file; here they are put together, once for every caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from unitify.capture import Capture
from unitify.cast import cast
from unitify.choices import Choice, Patterns, choose
from unitify.diagnostics import Diagnostic
from unitify.islands import path_of
from unitify.lowering import lower
from unitify.module import UnitScaledModule
from unitify.plan import ScalePlan
from unitify.recipe import Recipe
from unitify.rule_table import RuleTable


@dataclass(frozen=True)
class Casts:
    """A graph with casts in it, by which recipe, and what was chosen for each value."""

    graph: fx.Graph
    recipe: Recipe
    choices: tuple[Choice, ...]


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
    cast_graph = cast(graph, choices, recipe, capture, plan, rules)
    device = next((p.device for p in capture.model.parameters()), torch.device("cpu"))
    lowered, noted = lower(cast_graph, choices, recipe, rules, device)
    return Casts(lowered, recipe, noted)


def cast_module(
    module: UnitScaledModule,
    recipe: Recipe,
    rules: RuleTable,
    choices: Mapping[str, tuple[Choice, ...]] | None = None,
) -> tuple[Diagnostic, ...]:
    """Cast every part of ``module`` by ``recipe``, in place. Returns what the user should know.

    ``choices``: by part, made before; chosen anew where None.
    """
    patterns = Patterns(recipe)
    made: dict[str, Casts] = {}
    for name, part in module.parts.items():
        chosen = (
            choose(part.capture, recipe, rules, path=path_of(name), patterns=patterns)
            if choices is None
            else choices[name]
        )
        made[name] = with_casts(part.graph, chosen, recipe, part.capture, part.plan, rules)
    for name, part in module.parts.items():
        part.take_casts(made[name].graph, recipe, made[name].choices)
    module.recipe = recipe
    return patterns.unmatched() if choices is None else ()
