"""``planned``: the scales of every part.

Parts with estimates ─► plan ─► parts with plans. Recordings of one module share the scales of its
parameters. The plan of the first one decides them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from unitify.diagnostics import Diagnostic
from unitify.formats.table import FP32
from unitify.part import Part
from unitify.plan.fixed import parameter_of
from unitify.plan.planner import not_fewest, plan
from unitify.plan.scale_plan import Carrier, Placement, ScalePlan, Weights, parameter_units
from unitify.plan.uniform import uniform_plan
from unitify.recipe.recipe import Recipe
from unitify.rulebook.rule_table import RuleTable
from unitify.scheme.reparametrize import with_gradients


@dataclass(frozen=True)
class Planned:
    """Parts with plans, and diagnostics on these."""

    parts: tuple[Part, ...]
    diagnostics: tuple[Diagnostic, ...]


def planned(
    parts: Iterable[Part],
    rules: RuleTable,
    tolerance: float,
    placement: Placement,
    carrier: Carrier,
) -> Planned:
    """A plan for each of ``parts`` from its estimates; the options are those of ``plan``."""
    done: list[Part] = []
    notes: list[Diagnostic] = []
    for part in parts:
        own = plan(part.capture, part.estimates, rules, tolerance, placement, carrier)
        notes += not_fewest(own, part.name)
        chosen = agreed(replace(part, plan=own), done)
        units = parameter_units(part.capture, chosen.plan)
        capture = with_gradients(part.capture, {name: unit.bwd for name, unit in units.items()})
        done.append(replace(chosen, capture=capture))
    return Planned(tuple(done), tuple(notes))


def uniformly_planned(parts: Iterable[Part], loss_scale: float) -> Planned:
    """The plan of a baseline for each of ``parts``, without estimates."""
    found = (replace(part, plan=uniform_plan(part.capture, loss_scale)) for part in parts)
    return Planned(tuple(found), ())


def agreed(part: Part, others: Iterable[Part]) -> Part:
    """``part``, with the parameters' scales of the first of ``others`` of the same module.

    For true parameters, their units are shared.
    """
    first = next((other for other in others if other.path == part.path), None)
    return part if first is None else replace(part, plan=_shared(part, first))


def _shared(part: Part, first: Part) -> ScalePlan:
    units = parameter_units(first.capture, first.plan)
    held = {
        node.name: parameter
        for node in part.capture.graph.nodes
        if (parameter := parameter_of(part.capture, node)) and node.name in part.plan.values
    }
    scales = {name: first.plan.parameters[parameter] for name, parameter in held.items()}
    own = {name: unit for name, unit in part.plan.units.items() if name not in held}
    own |= {n: units[p] for n, p in held.items() if units[p] != scales[n]}
    return replace(
        part.plan,
        values={**part.plan.values, **scales},
        parameters=first.plan.parameters,
        units=own,
    )


def placement_of(recipe: Recipe | None, *, has_scheme: bool) -> Placement:
    """The default placement.

    Contractions that are cast by scales of the plan need only their operands near unit RMS.
    """
    is_narrow = recipe is not None and (recipe.values, recipe.scaling) == ("contractions", "unit")
    return "casts" if is_narrow and not has_scheme else "everywhere"


def carrier_of(model: nn.Module, recipe: Recipe | None, weights: Weights) -> Carrier:
    """The carrier of values: narrow where a recipe casts all of them to a format of less range.

    It is narrow, too, for stored weights, which are for modules in such a format, and for a model
    in float16.
    """
    if weights == "stored" or any(p.dtype == torch.float16 for p in model.parameters()):
        return "narrow"
    if recipe is None or recipe.values != "all":
        return "wide"
    formats = recipe.forward, recipe.backward
    return "narrow" if any(f.min_exponent > FP32.min_exponent for f in formats) else "wide"
