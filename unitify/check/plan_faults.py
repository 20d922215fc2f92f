"""Findings about plans: scales that have drifted, and a plan unlike the committed one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import fx

from unitify.diagnostics import Diagnostic, PlanDiffers, PlanMismatch, ScaleDrift, UnitifyError
from unitify.documents import first_line, read_json
from unitify.estimates import Estimates, Rms
from unitify.part import Part, value_name
from unitify.plan.fixed import fixed_values, true_weights
from unitify.plan.narrow import narrowed
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rulebook.extremes import extreme_values
from unitify.rulebook.rule_table import RuleTable

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Comparison:
    """Plans to compare with. ``drift``: judge the scales of the subject's own plan.

    ``committed``: a plan that a new one has to equal, and the ``path`` of its file.
    ``is_sure``: is the RMS measured on data, neither drawn nor predicted? ``begun``: by part, the
    estimates of two runs where parameters are zero, as a plan is made of them.
    """

    drift: bool = False
    committed: ScalePlan | None = None
    path: str = ""
    is_sure: bool = False
    begun: Mapping[str, Estimates] = field(default_factory=dict)

    def of_part(self, part: str) -> dict[str, Scale]:
        """The committed scales of one part, by the names in its graph.

        A value that stays true has the scale at which a cast rounds it.
        """
        plan = self.committed
        values = {**plan.values, **plan.units} if plan is not None else {}
        prefix = value_name(part, "")
        return {
            name.removeprefix(prefix): scale
            for name, scale in values.items()
            if name.startswith(prefix)
        }


def read_plan(path: Path) -> ScalePlan:
    """The plan in a ``plan.json``, which a converted folder holds or ``ScalePlan.dumps`` makes.

    Raises ``UnitifyError`` (U301).
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be read ({first_line(error)})"
        raise UnitifyError(PlanMismatch(problem=problem)) from None
    return ScalePlan.from_json(document)


def drifted(
    part: Part, estimates: Estimates, rules: RuleTable
) -> Iterator[tuple[fx.Node, str, Diagnostic, float]]:
    """Every tensor with its distance in octaves from the scale of the plan, as a diagnostic.

    A value that stays true is compared with the scale at which a cast rounds it. Inputs, buffers
    and carriers of masking constants have no such scale.
    """
    if part.plan.carrier == "narrow":
        estimates = narrowed(part.capture, estimates, rules)
    extreme = extreme_values(
        part.capture.graph, rules, part.capture.example, part.capture.attribute
    )
    fixed = fixed_values(part.capture) - true_weights(part.capture)
    for node in part.capture.graph.nodes:
        if node.name not in part.plan.values or node in extreme or node in fixed:
            continue
        of = part.plan.unit(node.name)
        for direction, exponent in zip(DIRECTIONS, of.exponents, strict=True):
            rms = getattr(estimates.get(node.name, Rms()), direction)
            if rms and math.isfinite(rms):
                octaves = math.log2(rms) - exponent
                tensor = _tensor(direction)
                power = f"2^{exponent}"
                found = ScaleDrift(tensor=tensor, rms=rms, octaves=octaves, scale=power)
                yield node, direction, found, abs(octaves)


def differing(
    part: Part, planned: ScalePlan, committed: Mapping[str, Scale], path: str
) -> Iterator[tuple[fx.Node, str, Diagnostic]]:
    """Every tensor of a part that has another scale in ``planned`` than in ``committed``."""
    for node in part.capture.graph.nodes:
        if node.name not in planned.values:
            continue
        scale = planned.unit(node.name)
        held = committed.get(node.name)
        for index, direction in enumerate(DIRECTIONS):
            text = "none" if held is None else f"2^{held.exponents[index]}"
            own = f"2^{scale.exponents[index]}"
            if own != text:
                found = PlanDiffers(tensor=_tensor(direction), scale=own, committed=text, path=path)
                yield node, direction, found


def _tensor(direction: str) -> str:
    return "gradient" if direction == "backward" else "value"
