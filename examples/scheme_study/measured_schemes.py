"""Schemes side by side as they run: every one on a model, measured on example inputs.

As ``schemes``, with u-μP beside; plans are made from the same measurement.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from examples.scheme_study.drawn_moments import glorot_weights
from examples.scheme_study.schemes import GLOROT, OWN, UNIT, SchemeShares, loss_exponent, planned
from unitify.capture.execution import LossFunction
from unitify.capture.inputs import given_or_inferred
from unitify.capture.islands import Recording, record
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.measure.captured import measure
from unitify.part import value_name
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.plan.uniform import uniform_plan
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.scheme.multipliers import multipliers
from unitify.scheme.options import UMuP, UnitScheme
from unitify.scheme.reparametrize import reparametrize


def compare_schemes(
    model: nn.Module,
    example_inputs: Any = (),
    example_kwargs: dict[str, Any] | None = None,
    *,
    loss_fn: LossFunction | None = None,
    rules: Iterable[Any] = (),
) -> tuple[SchemeShares, ...]:
    """Every scheme on ``model`` at initialization, measured on the example inputs.

    Plans are made from the same measurement.

    Raises what capture raises, and ``UnitifyError`` (U701) for a model that is no single graph.
    """
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    recorded, table = record(model, args, kwargs), load_rules(rules)
    measured = _measured(recorded, loss_fn)
    exponent = loss_exponent(rms.backward for held in measured.values() for rms in held.values())
    scaled = 2.0**exponent
    found = [
        _uniform("none", OWN, recorded, measured),
        _glorot(recorded, table, loss_fn),
        _uniform(f"loss scale 2^{exponent}", OWN, recorded, measured, scaled),
        _planned("unitify, preserve", OWN, recorded, measured, table),
    ]
    for scheme in (UnitScheme(), UMuP()):
        changed = reparametrize(recorded, scheme, table)
        again = _measured(changed, loss_fn)
        found.append(_planned(f"unitify, {scheme.name}", UNIT, changed, again, table))
    return tuple(found)


#: Estimates by part.
Measured = Mapping[str, Estimates]


def _measured(recorded: Recording, loss_fn: LossFunction | None) -> Measured:
    return {name: measure(captured, None, loss_fn) for name, captured in recorded.parts.items()}


def _uniform(
    name: str, weights: str, recorded: Recording, measured: Measured, loss_scale: float = 1.0
) -> SchemeShares:
    plans = {part: uniform_plan(c, loss_scale) for part, c in recorded.parts.items()}
    return _joined(name, weights, recorded, measured, plans)


def _planned(
    name: str, weights: str, recorded: Recording, measured: Measured, table: RuleTable
) -> SchemeShares:
    plans = {part: plan(c, measured[part], table) for part, c in recorded.parts.items()}
    return _joined(name, weights, recorded, measured, plans)


def _glorot(recorded: Recording, table: RuleTable, loss_fn: LossFunction | None) -> SchemeShares:
    first = next(iter(recorded.parts.values()))
    drawn = glorot_weights(multipliers(first, UnitScheme(), table).parameters, first)
    model = copy.deepcopy(recorded.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in drawn:
                parameter.normal_(*drawn[name])
    args, kwargs = _call(first)
    again = record(model, args, kwargs)
    return _uniform("Glorot initialization", GLOROT, again, _measured(again, loss_fn))


def _call(captured: Capture) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs of a capture, as keyword inputs of a call."""
    given = torch.utils._pytree.tree_unflatten(list(captured.example), captured.call.in_spec)
    return (), dict(given)


def _joined(
    name: str,
    weights: str,
    recorded: Recording,
    measured: Measured,
    plans: Mapping[str, ScalePlan],
) -> SchemeShares:
    """All parts together. A result in front of its own multiplier is half of an operation."""
    estimates: dict[str, Rms] = {}
    scales: dict[str, Scale] = {}
    for part, captured in recorded.parts.items():
        made = captured.reparametrization
        halves = made.outputs if made is not None else {}
        for value, rms in measured[part].items():
            if value not in halves:
                estimates[value_name(part, value)] = rms
                scales[value_name(part, value)] = plans[part].unit(value)
    return planned(name, weights, estimates, estimates, ScalePlan(scales, {}))
