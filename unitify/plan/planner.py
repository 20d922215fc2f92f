"""From estimates to a plan: a scale for every value and parameter, with the fewest rescales.

It is one mixed-integer linear program. Its variables are the exponents of the scales, each within
the band of its RMS (``bands``). Laws are linear in them (``linear_law``), and so is log2 of every
factor of the one equation. A factor other than one costs the bytes that it moves, and a call. Among
plans of the same cost the program chooses the one nearest to unit RMS.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from torch import fx

from unitify.capture.whole import Capture
from unitify.diagnostics import Diagnostic, RescalesNotFewest
from unitify.estimates import Estimates
from unitify.plan.bands import TOLERANCE, WIDE_TOLERANCE, Bands, ScaleBand
from unitify.plan.fixed import has_no_gradient, parameter_of
from unitify.plan.linear_law import LinearLaw, Multiples, linear_law
from unitify.plan.narrow import narrowed
from unitify.plan.program import ZERO, Exponent, Program, Solution
from unitify.plan.scale_plan import Carrier, Placement, Scale, ScalePlan, versions, weights_of
from unitify.plan.shared import shared_units
from unitify.rulebook.dimensions import hint
from unitify.rulebook.laws import factors, holds_tensors, is_complex, is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name

#: The seconds of the search for the fewest rescales, and the most nodes of a graph to search. Small
#: models take less than one second (docs/results/rescales.md).
SECONDS, NODES = 5.0, 50_000
#: The cost of a call, as the bytes that a kernel moves in the time of one.
_BYTES_A_CALL = 2.0**20
#: More than any sum of the exponents of an operation's operands.
_FAR = 1000


def plan(
    capture: Capture,
    estimates: Estimates,
    rules: RuleTable,
    tolerance: float = TOLERANCE,
    placement: Placement = "everywhere",
    carrier: Carrier = "narrow",
) -> ScalePlan:
    """Choose a scale for every floating value and parameter of ``capture``.

    - ``tolerance``: the octaves by which a narrow value's RMS may differ from its scale.
    - ``placement``: "casts" leaves every value true except stored parameters; the ``units`` of the
      plan then hold the scales of casts.
    - ``carrier``: "wide" allows ``WIDE_TOLERANCE`` octaves, and ties gradients to their values.

    ``ScalePlan.gap`` is zero where the rescales are proven to be the fewest. In a graph of more
    than ``NODES`` nodes each value gets the scale nearest to it, without a search.
    """
    if carrier == "narrow":
        estimates = narrowed(capture, estimates, rules)
    held = capture.graph.nodes if placement == "casts" else ()
    free = [n for n in held if parameter_of(capture, n) is None]
    bands = Bands(capture, estimates, rules, free)
    statement = _Statement(bands, rules, tolerance, carrier)
    solved = None
    if len(capture.graph.nodes) <= NODES:
        statement.state()
        solved = statement.program.solve(SECONDS)
    values = statement.chosen(solved) if solved is not None else statement.nearest()
    by_target = {
        parameter_of(capture, node): values[node.name]
        for node in capture.graph.nodes
        if node.op == "get_attr" and node.name in values
    }
    units = {n.name: _unit(n, values[n.name], bands, tolerance) for n in statement.forward}
    if placement == "casts":
        units = shared_units(capture, units)
    return ScalePlan(
        values=values,
        parameters={n: by_target.get(first, Scale()) for n, first in capture.aliases.items()},
        versions=versions(),
        units={name: unit for name, unit in units.items() if unit != values[name]},
        weights=weights_of(capture),
        placement=placement,
        carrier=carrier,
        gap=solved.gap if solved is not None else None,
    )


def not_fewest(chosen: ScalePlan, part: str = "") -> tuple[Diagnostic, ...]:
    """A note (U303) on a plan whose rescales may not be the fewest; else none."""
    if chosen.gap == 0.0:
        return ()
    if chosen.gap is None:
        count = len(chosen.values)
        problem = f"each of {count:,} values has the scale nearest to it alone"
    else:
        problem = f"{SECONDS:g} seconds left a gap of {chosen.gap:.1%}"
    return (RescalesNotFewest(where=part, problem=problem),)


def _unit(node: fx.Node, scale: Scale, bands: Bands, tolerance: float) -> Scale:
    """The scale near unit RMS of a value that is stored at another scale."""
    fwd, bwd = scale.exponents
    if not is_scalable(node) or node in bands.extremes.values:
        return scale
    fwd = bands.unit(node, "forward", fwd, tolerance)
    if node.op == "call_function" or parameter_of(bands.capture, node) is not None:
        bwd = bands.unit(node, "backward", bwd, tolerance)
    return Scale.of_exponents(fwd, bwd)


class _Statement:
    """The program of one graph: exponents of its values, and factors between them."""

    def __init__(self, bands: Bands, rules: RuleTable, tolerance: float, carrier: Carrier) -> None:
        self.bands, self.capture, self.rules = bands, bands.capture, rules
        self.carrier = carrier
        self.tolerance = tolerance if carrier == "narrow" else max(tolerance, WIDE_TOLERANCE)
        self.program = Program()
        self.found: dict[tuple[fx.Node, str], ScaleBand] = {}
        #: log2 of a value's scale, and of its gradient's.
        self.forward: dict[fx.Node, Exponent] = {}
        self.backward: dict[fx.Node, Exponent] = {}
        #: log2 of the units in which an operation leaves its result, and receives the gradient.
        self.left: dict[fx.Node, Exponent] = {}
        self.received: dict[fx.Node, Exponent] = {}
        self.laws: dict[fx.Node, LinearLaw] = {}
        for node in self.capture.graph.nodes:
            if is_scalable(node) or holds_tensors(node):
                self.forward[node] = ZERO

    def state(self) -> None:
        """Add exponents for every value, and factors for every operation."""
        for node in self.capture.graph.nodes:
            if node.op == "call_function":
                self.laws[node] = linear_law(self.rules.get(operation_name(node)), node)
        for node in self.forward:
            self._declare(node)
        for node in self.capture.graph.nodes:
            if node.op == "output":
                self._output(node)
            elif node.op == "call_function":
                self._operation(node)

    # -- exponents ------------------------------------------------------------------------

    def _declare(self, node: fx.Node) -> None:
        source = self._same_class(node)
        if source is not None:
            self.forward[node], self.backward[node] = self.forward[source], self.backward[source]
            return
        self.forward[node] = self._exponent(node, "forward")
        if self.carrier == "wide":
            self.backward[node] = -1 * self.forward[node]
        else:
            self.backward[node] = self._exponent(node, "backward")

    def _exponent(self, node: fx.Node, direction: str) -> Exponent:
        band = self._band(node, direction)
        if band.low == band.high:
            return Exponent({}, band.low)
        made = self.program.variable(band.low, band.high)
        self.program.near(made, band.wanted)
        return made

    def _same_class(self, node: fx.Node) -> fx.Node | None:
        """The operand that may share its scales with ``node``, its view or the like, at no cost.

        The two have one band, and nothing else depends on one of them alone. So a rescale between
        them can as well stand in front of both, or behind.
        """
        law = self.laws.get(node)
        operands = [] if law is None else [o for o in node.all_input_nodes if is_scalable(o)]
        if law is None or len(operands) != 1 or law.true_gradient or not is_scalable(node):
            return None
        (operand,) = operands
        is_class = law.output == {operand: 1.0} and not any(law.operands.values())
        is_alone = len(operand.users) == 1 or len(node.users) == 1
        if not (is_class and law.halved is None and is_alone):
            return None
        is_same = all(
            self._band(node, direction).limits == self._band(operand, direction).limits
            for direction in ("forward", "backward")
        )
        return operand if is_same else None

    def _band(self, node: fx.Node, direction: str) -> ScaleBand:
        """The band of a node, found once, because the band of a weight reads its numbers."""
        key = node, direction
        if key not in self.found:
            if self.carrier == "wide" and direction == "forward":
                self.found[key] = self.bands.carried(node, self.tolerance)
            else:
                self.found[key] = self.bands.of(node, direction, self.tolerance)
        return self.found[key]

    def _sum(self, multiples: Multiples) -> Exponent:
        total = ZERO
        for node, multiple in multiples.items():
            total += multiple * self.forward[node]
        return total

    # -- factors --------------------------------------------------------------------------

    def _operation(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and holds_tensors(source) and is_scalable(node):
            # One of several results has the units of its operation.
            self._result(node, self.left[source], self.received[source])
            return
        law = self.laws[node]
        left = self._sum(law.output)
        operands = {slot: self._sum(parts) for slot, parts in law.operands.items()}
        if law.halved is not None:
            first, slot, whole = law.halved
            given_back = self.program.variable(0, 1)
            taken = self.program.variable(-_FAR, _FAR)
            self.program.equal(self._sum(whole) - whole[first] * given_back - taken)
            left -= law.output.get(first, 0.0) * given_back
            operands[slot] += given_back
        if holds_tensors(node):
            # Its results are rescaled one by one; it is not.
            self.program.equal(self.forward[node] - left)
        self.left[node] = left
        if law.true_gradient or node not in self.forward:
            self.received[node] = ZERO
        else:
            self.received[node] = -1 * left if self.carrier == "wide" else self.backward[node]
        self._operands(node, operands)
        if is_scalable(node):
            self._result(node, left, self.received[node])

    def _result(self, node: fx.Node, left: Exponent, received: Exponent) -> None:
        if node.users:
            factors = left - self.forward[node], self.backward[node] - received
            self._rescale(node, [factors])

    def _operands(self, node: fx.Node, operands: dict[tuple[str, int], Exponent]) -> None:
        is_differentiable = node in self.forward or is_complex(node)
        unit = self.left[node] + self.received[node]
        taken: dict[fx.Node, list[tuple[Exponent, Exponent]]] = {}
        for name, argument in named_arguments(node).items():
            for index, operand in enumerate(nodes_of(argument)):
                if not is_scalable(operand):
                    continue
                forward = operands.get((name, index), ZERO)
                backward = forward
                if is_differentiable and not has_no_gradient(self.capture, operand):
                    own = self.forward[operand] + self.backward[operand]
                    backward = forward + unit - own
                taken.setdefault(operand, []).append((forward, backward))
        for operand, pairs in taken.items():
            # Either all uses of a value taken twice are rescaled, or none (``rewrite``).
            self._rescale(operand, pairs)

    def _output(self, node: fx.Node) -> None:
        for operand, times in Counter(nodes_of(node.args[0])).items():
            if is_scalable(operand):
                pair = self.forward[operand], -1 * self.backward[operand]
                self._rescale(operand, [pair] * times)

    def _rescale(self, node: fx.Node, pairs: list[tuple[Exponent, Exponent]]) -> None:
        moved = _bytes_of(node) / _BYTES_A_CALL
        self.program.rescale(((e, moved) for pair in pairs for e in pair), float(len(pairs)))

    # -- scales ---------------------------------------------------------------------------

    def chosen(self, solution: Solution) -> dict[str, Scale]:
        """The scales of the solution."""
        found = solution.values
        return self._scales(
            lambda n: self.forward[n].value(found), lambda n: self.backward[n].value(found)
        )

    def nearest(self) -> dict[str, Scale]:
        """A scale for each value by itself: one where its band holds that."""

        def of(direction: str) -> Callable[[fx.Node], int]:
            return lambda node: self._band(node, direction).nearest

        if self.carrier == "wide":
            return self._scales(of("forward"), lambda node: -of("forward")(node))
        return self._scales(of("forward"), of("backward"))

    def _scales(
        self, forward: Callable[[fx.Node], int], backward: Callable[[fx.Node], int]
    ) -> dict[str, Scale]:
        """``forward`` and ``backward`` factors of an operation whose law leaves them open."""
        fwd: dict[fx.Node, int] = {}
        for node in self.forward:
            fwd[node] = forward(node)
            if holds_tensors(node) and node.op == "call_function":
                rule = self.rules.get(operation_name(node))
                fwd[node] = factors(rule, node, lambda n: fwd.get(n, 0), fwd[node]).output
        return {
            node.name: Scale.of_exponents(
                fwd[node], -fwd[node] if self.carrier == "wide" else backward(node)
            )
            for node in self.forward
        }


def _bytes_of(node: fx.Node) -> float:
    """The bytes of a tensor, at the example's sizes."""
    value = node.meta["val"]
    return float(math.prod(hint(size) for size in value.shape) * value.element_size())
