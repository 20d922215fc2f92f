"""Schemes side by side on one graph, each as an assignment of scales: how near unit RMS values are.

Nothing, Glorot's initialization, one loss scale for all gradients, unit scaling as published, and
plans: for the model as it is, and for unit scaling. All RMS are predicted, so that all schemes are
judged alike; ``measured_schemes`` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from examples.scheme_study.constraints import RULES, Constraints
from examples.scheme_study.drawn_moments import DrawnMoments, glorot_weights
from examples.scheme_study.shares import Shares, shares
from examples.scheme_study.unit_graph import UnitGraph, value_of
from unitify.analysis.analyze import both_ways
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.plan.planner import plan
from unitify.plan.scale_plan import ScalePlan
from unitify.plan.uniform import uniform_plan
from unitify.rulebook.rule_table import RuleTable

#: What the weights of a scheme are.
OWN, GLOROT, UNIT = "as they are", "Glorot", "N(0, 1)"


@dataclass(frozen=True)
class SchemeShares:
    """One scheme on one graph: its name, what its weights are, and what that makes of the values.

    ``weights``: ``OWN``, ``GLOROT`` or ``UNIT``.
    """

    scheme: str
    weights: str
    forward: Shares
    backward: Shares

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def predicted_schemes(
    capture: Capture,
    chosen: ScalePlan,
    rules: RuleTable,
    found: Constraints,
    unit: UnitGraph,
    estimates: Estimates,
    loss_fn: LossFunction | None = None,
) -> tuple[SchemeShares, ...]:
    """Every scheme on ``capture``, of the values that receive a gradient.

    ``chosen``, ``estimates``: its module's plan, and what the analysis says of it. Of a model that
    a scheme made, weights are drawn already: there is neither Glorot's initialization nor a plan
    for another model.
    """
    made = capture.reparametrization
    vertices = [value.value for value in found.values]
    own = vertices if made is None else [value_of(vertex, made) for vertex in vertices]
    exponent = loss_exponent(estimates[name].backward for name in own if name in estimates)
    true, scaled = uniform_plan(capture), uniform_plan(capture, 2.0**exponent)

    def rows() -> Iterator[SchemeShares]:
        yield planned("none", OWN, own, estimates, true)
        if made is None:
            drawn = _glorot(capture, unit, rules, loss_fn)
            yield planned("Glorot initialization", GLOROT, own, drawn, true)
        yield planned(f"loss scale 2^{exponent}", OWN, own, estimates, scaled)
        for rule in RULES:
            yield SchemeShares(
                f"unit scaling, {rule}",
                UNIT,
                found.shares(rule, "forward"),
                found.shares(rule, "backward"),
            )
        if made is not None:
            yield planned(f"unitify, {made.scheme}", UNIT, own, estimates, chosen)
            return
        yield planned("unitify, preserve", OWN, own, estimates, chosen)
        names = [value_of(vertex, unit.made) for vertex in vertices]
        free = plan(unit.capture, unit.estimates, rules)
        yield planned("unitify, unit", UNIT, names, unit.estimates, free)

    return tuple(rows())


def planned(
    scheme: str,
    weights: str,
    names: Iterable[str],
    estimates: Estimates,
    assignment: ScalePlan,
) -> SchemeShares:
    """The shares of the values ``names`` under an assignment of scales.

    What has to stay true, such as weights, counts at the scale at which a cast rounds it.
    """
    held = [(estimates.get(n, Rms()), assignment.unit(n)) for n in names]
    return SchemeShares(
        scheme,
        weights,
        shares((rms.forward / scale.fwd for rms, scale in held if rms.forward), "forward"),
        shares((rms.backward / scale.bwd for rms, scale in held if rms.backward), "backward"),
    )


def loss_exponent(gradients: Iterable[float | None]) -> int:
    """log2 of the loss scale that brings the median of the gradients' RMS to one."""
    logs = sorted(math.log2(rms) for rms in gradients if rms and math.isfinite(rms))
    return -round(logs[len(logs) // 2]) if logs else 0


def _glorot(
    capture: Capture, unit: UnitGraph, rules: RuleTable, loss_fn: LossFunction | None
) -> Estimates:
    drawn = DrawnMoments(capture, rules, glorot_weights(unit.made.parameters, capture))
    return both_ways(drawn, loss_fn)[1]
