"""From estimates to a plan: the ``Scale`` of every value and parameter.

Forward scales are chosen from inputs to outputs, backward scales from outputs to inputs.
A value keeps the scale at which it arrives while its RMS then lies in [1/2, 2]; it is
rescaled to the nearest power of two otherwise. What must stay true does (``fixed``), and so do
values that carry masking constants.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.diagnostics import PlanMismatch, ScaleNotAllowed, UnitifyError
from unitify.estimates import Estimates, Rms
from unitify.formats.powers import exponent_of, is_power_of_two
from unitify.operations.extremes import extreme_values
from unitify.operations.laws import Factors, factors, holds_tensors, is_scalable
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, nodes_of, operation_name
from unitify.plan.fixed import fixed_values, is_true_parameter, parameter_of

#: Half the width, in octaves, of the band in which a value keeps the scale it arrives at: of one
#: that was measured, and of one that was predicted and may be half an octave from there.
TOLERANCE, PREDICTED_TOLERANCE = 1.0, 0.5
#: Octaves around the typical RMS of a direction beyond which one tells of masking constants, zeros
#: or a broken estimate, not of a scale. A factor of the one equation is the sum of three such
#: distances, so that with a third of the range of float32 none of them overflows.
_LIMIT = 42

#: At which scale parameters are held: that of the original, or one at which they have unit RMS.
Weights = Literal["true", "stored"]
WEIGHTS: tuple[Weights, ...] = ("true", "stored")


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
    ``weights``: "true" where every parameter has to stay so.
    """

    values: Mapping[str, Scale]
    parameters: Mapping[str, Scale]
    versions: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, Scale] = field(default_factory=dict)
    weights: Weights = "stored"

    def unit(self, name: str) -> Scale:
        """The scale at which a value, and its gradient, is near unit RMS."""
        return self.units.get(name) or self.values.get(name) or Scale()

    def to_json(self) -> dict[str, Any]:
        """Plain data: exponents (log2) in place of scales."""
        return {
            "versions": dict(self.versions),
            "weights": self.weights,
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
            return ScalePlan(
                values={n: Scale.of_exponents(*e) for n, e in data["values"].items()},
                parameters={n: Scale.of_exponents(*e) for n, e in data["parameters"].items()},
                versions=dict(data.get("versions", {})),
                units={n: Scale.of_exponents(*e) for n, e in data.get("units", {}).items()},
                weights=held,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            problem = f"not a plan ({type(error).__name__}: {error})"
            raise UnitifyError(PlanMismatch(problem=problem)) from None

    def dumps(self) -> str:
        """The plan as text."""
        return json.dumps(self.to_json(), indent=1, sort_keys=True)


def plan(
    capture: Capture, estimates: Estimates, rules: RuleTable, tolerance: float = TOLERANCE
) -> ScalePlan:
    """Choose a scale for every floating value and parameter of ``capture``.

    ``tolerance``: how far, in octaves, a value's RMS may be from the scale at which it arrives.
    """
    planner = _Planner(capture, estimates, rules, tolerance)
    planner.choose_forward()
    planner.choose_backward()
    return planner.result()


class _Planner:
    """The two passes over the graph; exponents are log2."""

    def __init__(
        self, capture: Capture, estimates: Estimates, rules: RuleTable, tolerance: float
    ) -> None:
        self.tolerance = tolerance
        self.capture = capture
        self.estimates = estimates
        self.rules = rules
        self.fixed = fixed_values(capture)
        self.extreme = extreme_values(capture.graph, rules, capture.example, capture.attribute)
        self.forward: dict[fx.Node, int] = {}
        self.backward: dict[fx.Node, int] = {}
        self.factors: dict[fx.Node, Factors] = {}
        #: log2 of the typical RMS. Values are near one; gradients all shrink with the loss's mean.
        self.typical = {
            "forward": 0,
            "backward": _within(_median_log(e.backward for e in estimates.values())),
        }

    # Forward: operands are known, so the scale at which a result arrives is too.
    def choose_forward(self) -> None:
        for node in self.capture.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.forward[node] = self._parameter_scale(node) if is_scalable(node) else 0
            elif node.op == "call_function":
                self._choose_result(node)

    def _choose_result(self, node: fx.Node) -> None:
        rule = self.rules.get(operation_name(node))
        if not (is_scalable(node) or holds_tensors(node)):
            self.factors[node] = factors(rule, node, self._scale)
            return
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source in self.forward and holds_tensors(source):
            arrival = self.forward[source]
            self.forward[node] = self._settle(node, [arrival])
            return
        aligning = rule is not None and rule.law is not None and "out" in rule.law.output
        if aligning:
            candidates = [self._scale(n) for n in node.all_input_nodes if is_scalable(n)]
            chosen = self._settle(node, candidates)
            found = self.factors[node] = factors(rule, node, self._scale, chosen)
            self.forward[node] = found.output if holds_tensors(node) else chosen
            return
        self._adopt_units(rule, node)
        found = self.factors[node] = factors(rule, node, self._scale)
        self.forward[node] = (
            found.output if holds_tensors(node) else self._settle(node, [found.output])
        )

    def _adopt_units(self, rule: Any, node: fx.Node) -> None:
        """Let an absorbed parameter (a bias) take the units of the result where its RMS allows."""
        if rule is None or rule.law is None:
            return
        arguments = named_arguments(node)
        for name, monomial in rule.law.factors.items():
            operand = arguments.get(name)
            if not isinstance(operand, fx.Node) or monomial.get(name) != 1:
                continue
            if operand in self.fixed or operand.op != "get_attr" or len(operand.users) > 1:
                continue
            needed = factors(rule, node, self._scale).operands.get((name, 0), 0)
            self.forward[operand] = self._settle(operand, [self.forward[operand] - needed])

    def _parameter_scale(self, node: fx.Node) -> int:
        return self._settle(node, [])

    def _scale(self, node: fx.Node) -> int:
        return self.forward.get(node, 0)

    def _settle(self, node: fx.Node, arrivals: list[int]) -> int:
        if node in self.extreme or node in self.fixed:
            return 0
        chosen = self._nearest(node, "forward", arrivals)
        return 0 if chosen > 0 and self._would_round(node, chosen) else chosen

    def _would_round(self, node: fx.Node, exponent: int) -> bool:
        """Has a parameter numbers that, divided by 2^exponent, fall below the normal range?"""
        if parameter_of(self.capture, node) is None:
            return False
        weight: Tensor = self.capture.attribute(str(node.target)).detach()
        factor = math.ldexp(1.0, exponent)
        return not weight.is_meta and bool(((weight / factor) * factor).ne(weight).any())

    def _nearest(self, node: fx.Node, direction: str, arrivals: list[int]) -> int:
        middle = self.typical[direction]
        chosen = _nearest(self._log_rms(node, direction), arrivals, self.tolerance)
        return _within(chosen, middle)

    def _log_rms(self, node: fx.Node, direction: str) -> float | None:
        made = self.capture.reparametrisation
        if made is not None and direction == "forward" and node.name in made.outputs:
            # Only its own multiplier takes it: the two are one operation of the scheme.
            return None
        estimate = self.estimates.get(node.name, Rms())
        rms = getattr(estimate, direction)
        if rms is None or not rms > 0 or not math.isfinite(rms):
            return None
        log = math.log2(rms)
        return log if abs(log - self.typical[direction]) <= _LIMIT else None

    # Backward: every consumer hands back a gradient at some scale; the majority within
    # tolerance is kept, so that most edges need no factor of their own.
    def choose_backward(self) -> None:
        for node in reversed(list(self.capture.graph.nodes)):
            if node in self.fixed or not (is_scalable(node) or holds_tensors(node)):
                self.backward[node] = 0
                continue
            arrivals = [a for user in node.users for a in self._arrivals(node, user)]
            self.backward[node] = self._nearest(node, "backward", arrivals)

    def _arrivals(self, node: fx.Node, user: fx.Node) -> Iterable[int]:
        own = self.forward[node]
        if user.op == "output":
            yield -own
        elif user in self.factors:
            found = self.factors[user]
            if is_scalable(user) or holds_tensors(user):
                arriving = 0 if found.true_gradient else self.backward[user]
                yield found.output + arriving - own
        elif holds_tensors(node):
            yield self.backward[user]

    def result(self) -> ScalePlan:
        values = {
            node.name: Scale.of_exponents(self.forward[node], self.backward[node])
            for node in self.capture.graph.nodes
            if node in self.forward and (is_scalable(node) or holds_tensors(node))
        }
        by_target = {
            parameter_of(self.capture, node): values[node.name]
            for node in self.capture.graph.nodes
            if node.op == "get_attr" and node.name in values
        }
        parameters = {
            name: by_target.get(first, Scale()) for name, first in self.capture.aliases.items()
        }
        units = {n.name: self._unit(n) for n in self.capture.graph.nodes if n.name in values}
        units = {name: unit for name, unit in units.items() if unit != values[name]}
        return ScalePlan(values, parameters, versions(), units, weights_of(self.capture))

    def _unit(self, node: fx.Node) -> Scale:
        """Where a value that has to stay true would be, if it had not to."""
        fwd, bwd = self.forward[node], self.backward[node]
        if not is_scalable(node) or node in self.extreme:
            return Scale.of_exponents(fwd, bwd)
        is_held = node in self.fixed
        if is_held or parameter_of(self.capture, node) is not None:
            # A weight may be held, too: one that would round.
            fwd = self._nearest(node, "forward", [fwd])
        if is_held and (node.op == "call_function" or is_true_parameter(self.capture, node)):
            bwd = self._nearest(node, "backward", [bwd])
        return Scale.of_exponents(fwd, bwd)


def _nearest(log_rms: float | None, arrivals: list[int], tolerance: float) -> int:
    """The most frequent arrival within tolerance of the RMS; else the RMS, rounded."""
    if log_rms is None:
        return Counter(arrivals).most_common(1)[0][0] if arrivals else 0
    within = [a for a in arrivals if abs(log_rms - a) <= tolerance]
    if within:
        counts = Counter(within)
        return max(counts, key=lambda a: (counts[a], -abs(log_rms - a)))
    return round(log_rms)


def _within(exponent: int, middle: int = 0) -> int:
    """``exponent``, or the nearest one that is no more than the limit from ``middle``.

    The typical gradient is bounded, too: at an input, where gradients are true, a factor is as far
    from one as the gradient's scale.
    """
    return min(max(exponent, middle - _LIMIT), middle + _LIMIT)


def _median_log(values: Iterable[float | None]) -> int:
    logs = [math.log2(v) for v in values if v is not None and v > 0 and math.isfinite(v)]
    return round(statistics.median(logs)) if logs else 0


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


def operand_nodes(node: fx.Node) -> list[tuple[str, int, fx.Node]]:
    """Every node operand as (argument name, index in that argument, node)."""
    return [
        (name, index, operand)
        for name, argument in named_arguments(node).items()
        for index, operand in enumerate(nodes_of(argument))
    ]
