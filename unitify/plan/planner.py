"""From estimates to a plan: a scale for every value and parameter.

Forward scales are chosen from inputs to outputs, backward scales from outputs to inputs.
A value keeps the scale at which it arrives while its RMS then lies in [1/2, 2]; it is
rescaled to the nearest power of two otherwise. What must stay true does (``fixed``), and so do
values that carry masking constants.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.operations.extremes import extreme_values
from unitify.operations.laws import Factors, factors, holds_tensors, is_scalable
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, operation_name
from unitify.plan.fixed import fixed_values, is_true_parameter, parameter_of
from unitify.plan.scale_plan import Placement, Scale, ScalePlan, versions, weights_of
from unitify.plan.shared import one_unit_a_place

#: Half the width, in octaves, of the band in which a value keeps the scale it arrives at: of one
#: that was measured, and of one that was predicted and may be half an octave from there.
TOLERANCE, PREDICTED_TOLERANCE = 1.0, 0.5
#: Octaves around the typical RMS of a direction beyond which one tells of masking constants, zeros
#: or a broken estimate, not of a scale. A factor of the one equation is the sum of three such
#: distances, so that with a third of the range of float32 none of them overflows.
_LIMIT = 42


def plan(
    capture: Capture,
    estimates: Estimates,
    rules: RuleTable,
    tolerance: float = TOLERANCE,
    placement: Placement = "everywhere",
) -> ScalePlan:
    """Choose a scale for every floating value and parameter of ``capture``.

    ``tolerance``: how far, in octaves, a value's RMS may be from the scale at which it arrives.
    ``placement``: "casts" leaves every value true, but for stored parameters; the scales chosen
    are then its units.
    """
    planner = _Planner(capture, estimates, rules, tolerance, placement)
    planner.choose_forward()
    planner.choose_backward()
    return planner.result()


class _Planner:
    """The two passes over the graph; exponents are log2."""

    def __init__(
        self,
        capture: Capture,
        estimates: Estimates,
        rules: RuleTable,
        tolerance: float,
        placement: Placement,
    ) -> None:
        self.tolerance = tolerance
        self.placement = placement
        self.capture = capture
        self.estimates = estimates
        self.rules = rules
        self.fixed = fixed_values(capture)
        if placement == "casts":
            self.fixed |= {n for n in capture.graph.nodes if parameter_of(capture, n) is None}
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
        if self.placement == "casts":
            units = one_unit_a_place(self.capture, units)
        units = {name: unit for name, unit in units.items() if unit != values[name]}
        weights = weights_of(self.capture)
        return ScalePlan(values, parameters, versions(), units, weights, self.placement)

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
