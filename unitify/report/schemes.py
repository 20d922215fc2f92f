"""Schemes side by side on one graph, each as an assignment of scales: how near unit RMS values are.

Nothing, Glorot's initialisation, one loss scale for all gradients, a plan for the model as it is,
unit scaling and u-μP. Values are measured, not predicted; plain values come out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from unitify.capture.execution import LossFunction
from unitify.capture.inputs import given_or_inferred
from unitify.capture.islands import Recording, record
from unitify.estimates import Estimates
from unitify.measure.captured import measure
from unitify.operations.rule_table import RuleTable, load_rules
from unitify.plan.scale_plan import ScalePlan, plan
from unitify.plan.uniform import uniform_plan
from unitify.scheme.multipliers import multipliers
from unitify.scheme.options import UMuP, UnitScheme
from unitify.scheme.reparametrise import reparametrise
from unitify.scheme.sweep import DRAWN


@dataclass(frozen=True)
class SchemeShares:
    """One scheme on one model: shares of values and of gradients with RMS in [1/2, 2].

    ``octaves_forward``, ``octaves_backward``: root mean square of log2 RMS, how far from unit they
    are. Of zeros, and of infinite values (masks), neither is counted.
    """

    scheme: str
    values: int
    forward: float
    backward: float
    octaves_forward: float
    octaves_backward: float

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare_schemes(
    model: nn.Module,
    example_inputs: Any = (),
    example_kwargs: dict[str, Any] | None = None,
    *,
    loss_fn: LossFunction | None = None,
    rules: Iterable[Any] = (),
) -> tuple[SchemeShares, ...]:
    """Every scheme on ``model`` at initialisation, measured on the example inputs.

    Plans are made from the same measurement.

    Raises what capture raises, and ``UnitifyError`` (U701) for a model that is no single graph.
    """
    args, kwargs = given_or_inferred(model, example_inputs, example_kwargs)
    recorded, table = record(model, args, kwargs), load_rules(rules)
    measured = _measured(recorded, loss_fn)
    exponent = _median_exponent(measured)
    as_it_is = {n: uniform_plan(c) for n, c in recorded.parts.items()}
    loss_scaled = {n: uniform_plan(c, 2.0**-exponent) for n, c in recorded.parts.items()}
    found = [
        _shares("none", recorded, measured, as_it_is),
        _glorot(recorded, table, loss_fn),
        _shares(f"one loss scale (2^{-exponent})", recorded, measured, loss_scaled),
        _planned("preserve", recorded, table, loss_fn),
    ]
    for scheme in (UnitScheme(), UMuP()):
        changed = reparametrise(recorded, scheme, table)
        found.append(_planned(scheme.name, changed, table, loss_fn))
    return tuple(found)


Measured = Mapping[str, Estimates]


def _measured(recorded: Recording, loss_fn: LossFunction | None) -> Measured:
    return {name: measure(captured, None, loss_fn) for name, captured in recorded.parts.items()}


def _planned(
    name: str, recorded: Recording, table: RuleTable, loss_fn: LossFunction | None
) -> SchemeShares:
    measured = _measured(recorded, loss_fn)
    plans = {part: plan(c, measured[part], table) for part, c in recorded.parts.items()}
    return _shares(name, recorded, measured, plans)


def _glorot(recorded: Recording, table: RuleTable, loss_fn: LossFunction | None) -> SchemeShares:
    """Matrices of variance 2/(fan_in + fan_out), as Glorot and Bengio 2010 draw them."""
    first = next(iter(recorded.parts.values()))
    roles = multipliers(first, UnitScheme(), table).parameters
    model = copy.deepcopy(recorded.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            role = roles.get(name)
            if role is not None and role.role in DRAWN and role.fan_in:
                parameter.normal_(0.0, math.sqrt(2 / (role.fan_in + role.fan_out)))
    args, kwargs = _call(first)
    again = record(model, args, kwargs)
    plans = {name: uniform_plan(captured) for name, captured in again.parts.items()}
    return _shares("Glorot", again, _measured(again, loss_fn), plans)


def _call(captured: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs of a capture, as keyword inputs of a call."""
    given = torch.utils._pytree.tree_unflatten(list(captured.example), captured.call.in_spec)
    return (), dict(given)


def _shares(
    name: str, recorded: Recording, measured: Measured, plans: Mapping[str, ScalePlan]
) -> SchemeShares:
    forward: list[float] = []
    backward: list[float] = []
    for part, captured in recorded.parts.items():
        made = captured.reparametrisation
        # A result in front of its own multiplier is half of an operation.
        halves = made.outputs if made is not None else {}
        for value, rms in measured[part].items():
            scale = plans[part].values[value]
            if _counts(rms.forward) and value not in halves:
                forward.append(rms.forward / scale.fwd)  # type: ignore[operator]
            if _counts(rms.backward):
                backward.append(rms.backward / scale.bwd)  # type: ignore[operator]
    return SchemeShares(
        name, len(forward), _unit(forward), _unit(backward), _octaves(forward), _octaves(backward)
    )


def _counts(rms: float | None) -> bool:
    return rms is not None and rms > 0 and math.isfinite(rms)


def _unit(held: list[float]) -> float:
    return sum(0.5 <= rms <= 2 for rms in held) / len(held) if held else math.nan


def _octaves(held: list[float]) -> float:
    squares = [math.log2(rms) ** 2 for rms in held]
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan


def _median_exponent(measured: Measured) -> int:
    logs = sorted(
        math.log2(rms.backward)
        for estimates in measured.values()
        for rms in estimates.values()
        if rms.backward and _counts(rms.backward)
    )
    return round(logs[len(logs) // 2]) if logs else 0
