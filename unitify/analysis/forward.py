"""Moments of every value of a graph, from its inputs and parameters to its outputs.

Each operation's row in the rule table chooses the way: count or run its sums (``linear``),
``quadrature``, ``formulas``, or samples (``sampled``). Sizes, masks and indices are computed as
they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.formulas import formula_forward
from unitify.analysis.linear import linear_forward
from unitify.analysis.moments import (
    Moment,
    compressed,
    exactly,
    fitted,
    gaussian,
    limited,
    number,
)
from unitify.analysis.quadrature import quadrature
from unitify.analysis.ranges import EVERYTHING, range_of
from unitify.analysis.running_statistics import running_statistics
from unitify.analysis.sampled import observed, sampled_results, varying
from unitify.analysis.small_image import on_small_image
from unitify.capture.whole import Capture
from unitify.diagnostics import error_line
from unitify.rulebook.dimensions import hint, shape_of
from unitify.rulebook.extremes import extreme_values, holds_mask
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.operation import Operation, on_cpu
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import listed, named_arguments, operation_name

#: One entry for each result of an operation; None for a result that is not floating.
Results = list["Moment | None"]
#: The most numbers that the moments of all values of a graph may hold, in each direction (256 MB
#: in float64), and the most for one value: its channels at some dozen positions.
MEMORY, ONE = 2**25, 2**15


@dataclass(frozen=True)
class Derivation:
    """How one RMS was derived. ``inputs``: the RMS of the values that it follows from.

    ``way``: given, exact, run, quadrature, formula, sampled, assumed, or running statistics.
    """

    way: str
    inputs: Mapping[str, float]
    rms: float


@dataclass(frozen=True)
class Fallback:
    """An operation whose moments do not follow its row: they are ``sampled`` or ``assumed``.

    ``direction``: "forward" or "backward". ``reason``: the operation's error message.
    """

    operation: str
    direction: str
    way: str
    reason: str


class ForwardMoments:
    """Moments of every floating value, and the values of all others."""

    def __init__(self, capture: Capture, rules: RuleTable, weight_rms: float | None) -> None:
        self.capture = capture
        self.rules = rules
        self.weight_rms = weight_rms
        self.moments: dict[fx.Node, Results] = {}
        self.known: dict[fx.Node, Any] = {}
        #: RMS of weights. Their moments are as large as they are, and not kept.
        self.weights: dict[fx.Node, float] = {}
        self.steps: dict[str, Derivation] = {}
        self.ways: dict[fx.Node, str] = {}
        #: Those of both directions, one a node.
        self.fallbacks: list[Fallback] = []
        self.elements = min(MEMORY // max(len(capture.graph.nodes), 1), ONE)
        self.masks = extreme_values(capture.graph, rules, capture.example, capture.attribute)
        self.statistics = running_statistics(capture, rules)
        #: Values that are not floating and depend on an input's contents.
        self.from_inputs: set[fx.Node] = set()
        #: Floating values that follow from these alone, such as the tokens of each expert.
        self.counted: dict[fx.Node, Tensor] = {}

    def run(self, *, backward: bool = True) -> None:
        """Walk the graph from its inputs to its output. ``backward``: gradients follow.

        Without, the moments of a value are dropped after its last use: small arrays that stay
        between those of weights keep the system from taking freed memory back.
        """
        inputs = iter(self.capture.example)
        last = {} if backward else _last_used(self.capture.graph)
        for position, node in enumerate(self.capture.graph.nodes):
            if node.op == "placeholder":
                self._placeholder(node, next(inputs))
            elif node.op == "get_attr":
                self._attribute(node)
            elif node.op == "call_function":
                self._call(node, position)
            for used in last.get(node, ()):
                self.moments.pop(used, None)

    def rms(self, node: fx.Node) -> float | None:
        """Predicted RMS of ``node``; None where it is unknown."""
        if node in self.weights:
            return self.weights[node]
        moment = self.moment(node)
        return moment.rms if moment is not None else None

    def moment(self, node: fx.Node) -> Moment | None:
        """The moments of a value. Those of a weight are computed again for each call."""
        if node in self.moments:
            return self.moments[node][0]
        if node.op == "get_attr" and is_scalable(node):
            return self._weight(node)
        return None

    def _placeholder(self, node: fx.Node, value: Any) -> None:
        if not is_scalable(node):
            if isinstance(value, Tensor) and value.is_meta:
                value = torch.zeros(value.shape, dtype=value.dtype)
            self.known[node] = on_cpu(value)
            self.from_inputs.add(node)
            return
        moment = gaussian(0.0, 1.0, value.dim())
        if holds_mask(value):
            moment = compressed(exactly(value))
        elif not value.is_meta and value.numel():
            moment = observed(value).uniform()
        self._note(node, [moment], "given", {})

    def _attribute(self, node: fx.Node) -> None:
        if not is_scalable(node):
            value = self.capture.attribute(str(node.target))
            empty = isinstance(value, Tensor) and value.is_meta
            self.known[node] = None if empty else on_cpu(value)
            return
        self.weights[node] = self._weight(node).rms
        self.steps[node.name] = Derivation("exact", {}, self.weights[node])

    def _weight(self, node: fx.Node) -> Moment:
        tensor = self.capture.attribute(str(node.target))
        if not tensor.is_meta:
            return exactly(tensor)
        if tensor.dim() <= 1:
            zero = str(node.target).endswith("bias")
            return number(0.0 if zero else 1.0, tensor.dim())
        config = getattr(self.capture.model, "config", None)
        spread = getattr(config, "initializer_range", None) or shape_of(tensor)[-1] ** -0.5
        return gaussian(0.0, float(self.weight_rms or spread), tensor.dim())

    def _call(self, node: fx.Node, position: int) -> None:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source in self.moments and holds_tensors(source):
            self._take(node, source)
            return
        operation = Operation(node, self.known)
        if not (is_scalable(node) or holds_tensors(node)):
            is_size = not isinstance(node.meta.get("val"), Tensor | list | tuple)
            if not is_size and any(
                n in self.from_inputs or is_scalable(n) for n in node.all_input_nodes
            ):
                self.from_inputs.add(node)
            self._plain(node, operation, position)
            return
        self._count(node, operation)
        rule = self.rules.get(operation_name(node))
        operands = self.operands(operation, rule)
        results, way = self._predict(operation, rule, operands, position)
        self.ways[node] = way
        results = self._in_range(operation, rule, operands, results, way)
        inputs = {n.name: m for n in node.all_input_nodes if (m := self.rms(n)) is not None}
        self._note(node, results, way, inputs)

    def _take(self, node: fx.Node, source: fx.Node) -> None:
        index = int(node.args[1])  # type: ignore[arg-type]
        moment = self.moments[source][index]
        if moment is None:
            values = self.known.get(source)
            self.known[node] = values[index] if values is not None else None
            self.from_inputs.add(node)
            return
        self._note(node, [moment], "run", {source.name: moment.rms})

    def _note(self, node: fx.Node, results: Results, way: str, inputs: Mapping[str, float]) -> None:
        # ``attended_keys`` counts a mask element by element.
        self.moments[node] = [
            m if m is None or node in self.masks else limited(m, self.elements) for m in results
        ]
        first = next((m for m in results if m is not None), None)
        self.steps[node.name] = Derivation(way, inputs, first.rms if first is not None else 0.0)
        if node in self.statistics:
            source, kept = self.statistics[node]
            self.moments[node] = [kept]
            self.steps[node.name] = Derivation(
                "running statistics", {source.name: kept.rms}, kept.rms
            )

    def _plain(self, node: fx.Node, operation: Operation, position: int) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            self.known[node] = hint(value)
            return
        try:
            if operation.operands:
                operands, counted = self.operands(operation, None), self._counted(operation)
                drawn = sampled_results(operation, operands, position, counted)
                self.known[node] = drawn[0] if len(drawn) == 1 else drawn
            else:
                self.known[node] = operation()
        except RuntimeError:
            # This integer depends on data (an index out of range, an empty selection).
            self.known[node] = None

    def _count(self, node: fx.Node, operation: Operation) -> None:
        """Keep a value that follows from integers alone, if they depend on an input's contents."""
        counted = self._counted(operation)
        is_small = all(math.prod(shape) <= ONE for shape in operation.result_shapes)
        if (
            is_small
            and counted.keys() == operation.operands.keys()
            and any(n in self.from_inputs or n in self.counted for n in node.all_input_nodes)
        ):
            with contextlib.suppress(RuntimeError):
                value = operation(counted)
                if isinstance(value, Tensor):
                    self.counted[node] = value

    def _counted(self, operation: Operation) -> dict[str, Tensor]:
        """The operands that follow from integers alone, by argument."""
        arguments = operation.operands.items()
        nodes = {name: a for name, a in arguments if isinstance(a, fx.Node)}
        return {name: self.counted[a] for name, a in nodes.items() if a in self.counted}

    def operands(self, operation: Operation, rule: Rule | None) -> dict[str, Any]:
        """Moments of the floating operands, and of others that a rule's formula names."""
        found: dict[str, Any] = {}
        row = rule or self.rules.get(operation_name(operation.node))
        domain = row.domain if row is not None else {}
        for name, argument in operation.operands.items():
            if isinstance(argument, list):
                found[name] = [self._any_moment(a) for a in argument]
            else:
                moment = self.moment(argument)
                bounds = domain.get(name)
                found[name] = moment.within(*bounds) if moment and bounds else moment
        for name, argument in named_arguments(operation.node).items():
            if rule is None or name in found:
                continue
            if name in rule.linear or not rule.linear:
                moment = self._of_plain(argument)
                if moment is not None:
                    found[name] = moment
                elif argument is None and rule.law is not None:
                    found[name] = number(1.0 if name in rule.law.output else 0.0)
        return found

    def _any_moment(self, argument: Any) -> Moment:
        moment = self.moment(argument) if isinstance(argument, fx.Node) else None
        return moment or self._of_plain(argument) or number(0.0)

    def _of_plain(self, argument: Any) -> Moment | None:
        value = self.known.get(argument) if isinstance(argument, fx.Node) else argument
        if isinstance(value, Tensor):
            return compressed(exactly(value))
        if isinstance(value, int | float):
            return number(float(value))
        return None

    def _predict(
        self, operation: Operation, rule: Rule | None, operands: dict[str, Any], position: int
    ) -> tuple[Results, str]:
        reason = ""
        try:
            if not operation.operands and (rule is None or not (rule.linear or rule.forward)):
                return [_exactly_or_none(v) for v in listed(operation())], "exact"
            if rule is not None and rule.linear and self._runs(operation, rule):
                named = {n: operands[n] for n in linear_names(rule, operands)}
                results: Results = list(linear_forward(operation, rule, named))
                return results, "run"
            if rule is not None and rule.elementwise:
                name = rule.elementwise
                value, _ = quadrature(lambda x: operation({name: x}), operands[name])
                return [value], "quadrature"
            if rule is not None and rule.forward is not None:
                return [formula_forward(operation, rule, operands)], "formula"
        except RuntimeError as error:
            # The operation rejects moments (it needs another type or layout): sample it.
            reason = error_line(error)
        return self._sample(operation, rule, operands, position, reason)

    def _in_range(
        self,
        operation: Operation,
        rule: Rule | None,
        operands: dict[str, Any],
        results: Results,
        way: str,
    ) -> Results:
        """The only result, with its range."""
        first = results[0] if len(results) == 1 else None
        if rule is None or first is None or way not in ("run", "formula", "sampled"):
            return results
        try:
            found = range_of(operation, rule, operands)
        except RuntimeError:
            return results
        return results if found == EVERYTHING else [first.within(*found)]

    def fall_back(self, operation: Operation, direction: str, way: str, reason: str) -> None:
        """Note that moments do not follow the row."""
        name = operation_name(operation.node)
        self.fallbacks.append(Fallback(name, direction, way, reason))

    def _runs(self, operation: Operation, rule: Rule) -> bool:
        """Is a linear operation run on moments? One with a formula is, where no input decides.

        An embedding of positions is known row by row, one of the user's tokens only on average.
        """
        return rule.forward is None or not any(
            n in self.from_inputs for n in operation.node.all_input_nodes if not is_scalable(n)
        )

    def _sample(
        self,
        operation: Operation,
        rule: Rule | None,
        operands: dict[str, Any],
        position: int,
        reason: str,
    ) -> tuple[Results, str]:
        """``reason``: why the row is not followed; "" where it gives no moments."""
        operands = {n: m for n, m in operands.items() if n in operation.operands}
        try:
            counted = self._counted(operation)
            small = on_small_image(operation, rule, operands)
            drawn = sampled_results(small, operands, position, counted)
        except RuntimeError as error:
            self.fall_back(operation, "forward", "assumed", reason or error_line(error))
            ndims = [len(s) for s in operation.result_shapes]
            moments = [m for m in operands.values() if isinstance(m, Moment)]
            rms = moments[0].rms if moments else 1.0
            return [gaussian(0.0, rms, n) for n in ndims], "assumed"
        if reason:
            self.fall_back(operation, "forward", "sampled", reason)
        self.known[operation.node] = drawn
        return [
            fitted(observed(value, varying(operands, shape)), shape) if _floats(value) else None
            for value, shape in zip(drawn, operation.result_shapes, strict=True)
        ], "sampled"


def _last_used(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that no later node uses."""
    users = {used: node for node in graph.nodes for used in node.all_input_nodes}
    last: dict[fx.Node, list[fx.Node]] = {}
    for used, node in users.items():
        last.setdefault(node, []).append(used)
    return last


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _exactly_or_none(value: Any) -> Moment | None:
    """Moments of a computed tensor; None if it does not float."""
    return compressed(exactly(value)) if _floats(value) else None


def linear_names(rule: Rule, operands: Mapping[str, Any]) -> list[str]:
    """Operands that are multiplied or added: those for which the row counts terms."""
    return [n for n in operands if n in rule.linear or n in rule.terms]
