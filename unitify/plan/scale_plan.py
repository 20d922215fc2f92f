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

#: How parameters are held: as in the original, or divided by scales of their own.
Weights = Literal["true", "stored"]
WEIGHTS: tuple[Weights, ...] = ("true", "stored")

#: Where values are near unit RMS: everywhere, or only where they are cast.
Placement = Literal["everywhere", "casts"]
PLACEMENTS: tuple[Placement, ...] = ("everywhere", "casts")

#: The range of the number format that stores values. "narrow" is FP16, or treated like it.
Carrier = Literal["narrow", "wide"]
CARRIERS: tuple[Carrier, ...] = ("narrow", "wide")


@dataclass(frozen=True)
class Scale:
    """True value = ``fwd`` × stored value; true gradient = ``bwd`` × stored gradient."""

    fwd: float = 1.0
    bwd: float = 1.0

    @property
    def exponents(self) -> tuple[int, int]:
        """log2 of ``fwd`` and of ``bwd``."""
        return exponent_of(self.fwd), exponent_of(self.bwd)

    @staticmethod
    def of_exponents(fwd: int, bwd: int) -> Scale:
        """The scale with these two log2 exponents."""
        return Scale(math.ldexp(1.0, fwd), math.ldexp(1.0, bwd))


@dataclass(frozen=True)
class ScalePlan:
    """The chosen scales, by value name and by parameter name. Immutable, comparable, JSON-ready.

    - ``values``: every floating value of the graph. A tuple-valued operation has the scale at which
      its results leave it
    - ``parameters``: every parameter, under each of its tied names
    - ``units``: value → the scale at which it is near unit RMS, if it is stored at another one. A
      cast rounds it there
    - ``weights``: "true" if every parameter stays true
    - ``placement``: "casts" if every value stays true; its unit is then the scale of its casts
    - ``carrier``: "wide" if values are only roughly near unit RMS, and every gradient has the
      inverse scale of its value
    - ``gap``: the share of the rescales' cost that may be saved. Zero if they are proven to be the
      fewest, None without a search
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
        """Do all values and gradients stay true?"""
        return all(scale == Scale() for scale in self.values.values())

    def unit(self, name: str) -> Scale:
        """The scale at which a value and its gradient are near unit RMS."""
        return self.units.get(name) or self.values.get(name) or Scale()

    def wanted(self, name: str) -> Scale:
        """The scale by which a value is judged: that of its casts with "casts", else its own."""
        if self.placement == "casts" or self.carrier == "wide":
            return self.unit(name)
        return self.values.get(name) or Scale()

    def received(self, name: str, made: Factors) -> int:
        """log2 of the units in which the operation ``name`` receives the gradient of its result.

        On a wide carrier a rescale multiplies a value and its gradient by one number. So these are
        the inverse of the units of the result.
        """
        if made.true_gradient:
            return 0
        if self.carrier == "wide":
            return -made.output
        return (self.values.get(name) or Scale()).exponents[1]

    def to_json(self) -> dict[str, Any]:
        """Plain data, with exponents (log2) for scales."""
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
            if not (gap is None or isinstance(gap, int | float)):
                raise ValueError(f"the gap is a {type(gap).__name__}")
            return ScalePlan(
                values=_scales(data["values"]),
                parameters=_scales(data["parameters"]),
                versions=dict(data.get("versions", {})),
                units=_scales(data.get("units", {})),
                weights=held,
                placement=placement,
                carrier=carrier,
                gap=None if gap is None else float(gap),
            )
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            problem = f"not a plan ({type(error).__name__}: {error})"
            raise UnitifyError(PlanMismatch(problem=problem)) from None

    def dumps(self) -> str:
        """The plan as text."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True)


def _scales(rows: Mapping[str, Any]) -> dict[str, Scale]:
    """Scales from their exponents. Raises ``ValueError`` for exponents that no float has."""
    found = {}
    for name, row in rows.items():
        fwd, bwd = row
        if not all(type(e) is int and -1022 <= e <= 1023 for e in (fwd, bwd)):
            raise ValueError(f"the scale of {name} is not two exponents")
        found[name] = Scale.of_exponents(fwd, bwd)
    return found


def widest_gap(gaps: Iterable[float | None]) -> float | None:
    """The largest gap of several plans; None if any is None."""
    found = list(gaps)
    return None if None in found else max((gap for gap in found if gap is not None), default=0.0)


def parameter_units(capture: Capture, plan: ScalePlan) -> dict[str, Scale]:
    """Name of every parameter → the scale at which it and its gradient are near unit RMS."""
    units = {
        parameter_of(capture, node): plan.unit(node.name)
        for node in capture.graph.nodes
        if node.op == "get_attr" and node.name in plan.values
    }
    return {name: units.get(first, Scale()) for name, first in capture.aliases.items()}


def weights_of(capture: Capture) -> Weights:
    """``ScalePlan.weights`` of ``capture``: do all of its parameters stay true?"""
    return "true" if capture.true_parameters >= set(capture.aliases.values()) else "stored"


def versions() -> dict[str, str]:
    """The versions of packages that the names of values depend on."""
    from unitify.version import __version__

    return {"unitify": __version__, "torch": str(torch.__version__)}


def check_plan(capture: Capture, plan: ScalePlan) -> None:
    """Check that ``plan`` belongs to ``capture``, and that it may use its scales.

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
