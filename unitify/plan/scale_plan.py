"""``ScalePlan``: the ``Scale`` of every value and parameter, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from unitify.capture.whole import Capture
from unitify.diagnostics import PlanMismatch, ScaleNotAllowed, UnitifyError
from unitify.formats.powers import exponent_of, is_power_of_two
from unitify.plan.fixed import fixed_values, parameter_of
from unitify.rulebook.laws import Factors, holds_tensors, is_scalable

#: At which scale parameters are held: that of the original, or one at which they have unit RMS.
Weights = Literal["true", "stored"]
WEIGHTS: tuple[Weights, ...] = ("true", "stored")

#: Where values are near unit RMS: everywhere, or where they are cast alone.
Placement = Literal["everywhere", "casts"]
PLACEMENTS: tuple[Placement, ...] = ("everywhere", "casts")

#: How much room the number format of stored values has. "narrow": FP16, or what is to be like it.
Carrier = Literal["narrow", "wide"]
CARRIERS: tuple[Carrier, ...] = ("narrow", "wide")


@dataclass(frozen=True)
class Scale:
    """True value = ``fwd`` × stored value; true gradient = ``bwd`` × stored gradient."""

    fwd: float = 1.0
    bwd: float = 1.0

    @property
    def exponents(self) -> tuple[int, int]:
        """(log2 fwd, log2 bwd)."""
        return exponent_of(self.fwd), exponent_of(self.bwd)

    @staticmethod
    def of_exponents(fwd: int, bwd: int) -> Scale:
        """The scale of two log2 exponents."""
        return Scale(math.ldexp(1.0, fwd), math.ldexp(1.0, bwd))


@dataclass(frozen=True)
class ScalePlan:
    """The chosen scales, by value name and by parameter name. Immutable, comparable, JSON-ready.

    ``values`` holds every floating value of the graph (a tuple-valued operation is there under its
    own name: the scale at which its results leave it); ``parameters`` every parameter, tied
    names included. ``units``: of values that have to stay true, the scales at which they would be
    near unit RMS, where those are others: a cast rounds them there, wherever they are stored.
    ``weights``: "true" where every parameter has to stay so. ``placement``: "casts" where every
    value stays true, and its unit is the scale of its casts. ``carrier``: "wide" where values are
    only roughly near unit RMS, and every gradient has the inverse scale of its value.
    ``gap``: how many of its rescales may be too many, as a share of what they cost: zero where
    none is, None where the fewest were not looked for.
    """

    values: Mapping[str, Scale]
    parameters: Mapping[str, Scale]
    versions: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, Scale] = field(default_factory=dict)
    weights: Weights = "stored"
    placement: Placement = "everywhere"
    carrier: Carrier = "narrow"
    gap: float | None = 0.0

    @property
    def is_true(self) -> bool:
        """Is every value at true scale, and every gradient?"""
        return all(scale == Scale() for scale in self.values.values())

    def unit(self, name: str) -> Scale:
        """The scale at which a value, and its gradient, is near unit RMS."""
        return self.units.get(name) or self.values.get(name) or Scale()

    def wanted(self, name: str) -> Scale:
        """Where the plan wants a value near unit RMS: as it is stored, or where it is cast."""
        if self.placement == "casts" or self.carrier == "wide":
            return self.unit(name)
        return self.values.get(name) or Scale()

    def received(self, name: str, made: Factors) -> int:
        """log2 of the units in which the operation ``name`` receives the gradient of its result.

        On a wide carrier every rescale multiplies a value and its gradient by one number, so that
        these are the inverse of the units in which the operation leaves its result.
        """
        if made.true_gradient:
            return 0
        if self.carrier == "wide":
            return -made.output
        return (self.values.get(name) or Scale()).exponents[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data: exponents (log2) in place of scales."""
        return {
            "versions": dict(self.versions),
            "weights": self.weights,
            "placement": self.placement,
            "carrier": self.carrier,
            "gap": self.gap,
            "values": {n: list(s.exponents) for n, s in self.values.items()},
            "parameters": {n: list(s.exponents) for n, s in self.parameters.items()},
            "units": {n: list(s.exponents) for n, s in self.units.items()},
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> ScalePlan:
        """The plan that ``to_json`` wrote.

        Raises ``UnitifyError`` (U301) for anything else.
        """
        try:
            held: Weights = data.get("weights", "stored")
            if held not in WEIGHTS:
                raise ValueError(f"weights are {held!r}")
            placement: Placement = data.get("placement", "everywhere")
            if placement not in PLACEMENTS:
                raise ValueError(f"the placement is {placement!r}")
            carrier: Carrier = data.get("carrier", "narrow")
            if carrier not in CARRIERS:
                raise ValueError(f"the carrier is {carrier!r}")
            gap = data.get("gap", 0.0)
            return ScalePlan(
                values={n: Scale.of_exponents(*e) for n, e in data["values"].items()},
                parameters={n: Scale.of_exponents(*e) for n, e in data["parameters"].items()},
                versions=dict(data.get("versions", {})),
                units={n: Scale.of_exponents(*e) for n, e in data.get("units", {}).items()},
                weights=held,
                placement=placement,
                carrier=carrier,
                gap=None if gap is None else float(gap),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = f"not a plan ({type(error).__name__}: {error})"
            raise UnitifyError(PlanMismatch(problem=problem)) from None

    def dumps(self) -> str:
        """The plan as text."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True)


def widest_gap(gaps: Iterable[float | None]) -> float | None:
    """The gap of several plans together."""
    found = list(gaps)
    return None if None in found else max((gap for gap in found if gap is not None), default=0.0)


def parameter_units(capture: Capture, plan: ScalePlan) -> dict[str, Scale]:
    """Name of every parameter → the scale at which it, and its gradient, is near unit RMS."""
    units = {
        parameter_of(capture, node): plan.unit(node.name)
        for node in capture.graph.nodes
        if node.op == "get_attr" and node.name in plan.values
    }
    return {name: units.get(first, Scale()) for name, first in capture.aliases.items()}


def weights_of(capture: Capture) -> Weights:
    """Does every parameter of ``capture`` stay true?"""
    return "true" if capture.true_parameters >= set(capture.aliases.values()) else "stored"


def versions() -> dict[str, str]:
    """Versions that the names of values depend on."""
    from unitify.version import __version__

    return {"unitify": __version__, "torch": str(torch.__version__)}


def check_plan(capture: Capture, plan: ScalePlan) -> None:
    """Does ``plan`` belong to ``capture``, and is every scale one that may be used?

    Raises ``UnitifyError`` (U301 where names differ, U302 for a scale that is not allowed).
    """
    values = {n.name: n for n in capture.graph.nodes if is_scalable(n) or holds_tensors(n)}
    missing, strange = values.keys() - plan.values.keys(), plan.values.keys() - values.keys()
    if missing or strange:
        example = sorted(missing or strange)[0]
        problem = f"{len(missing)} values are missing, {len(strange)} unknown, such as {example}"
        raise UnitifyError(PlanMismatch(problem=problem))
    if plan.units.keys() - values.keys():
        problem = f"a unit of the unknown value {sorted(plan.units.keys() - values.keys())[0]}"
        raise UnitifyError(PlanMismatch(problem=problem))
    for name, scale in [*plan.values.items(), *plan.units.items()]:
        for factor in (scale.fwd, scale.bwd):
            if not is_power_of_two(factor):
                problem = "it is not a power of two"
                raise UnitifyError(ScaleNotAllowed(value=name, scale=str(scale), problem=problem))
    fixed = fixed_values(capture)
    for name, scale in plan.values.items():
        if values[name] in fixed and scale != Scale():
            problem = "the value must stay at true scale"
            raise UnitifyError(ScaleNotAllowed(value=name, scale=str(scale), problem=problem))
