"""Validates an emitted graph without running it: is it the original, rescaled by the one equation?

Walks the captured graph, the emitted graph and the plan together, once, and derives every inserted
factor again from the rules (``equation``). It shares no code with the rewriter. It takes models of
any size, also on the meta device. Every original operation must be there under its own name and
with its own arguments. Between two of them must stand

    result:     one rescale (c / fwd(y), bwd(y) / g)                    if that is not (1, 1)
    operand i:  one rescale (ri, c·ri·g / (fwd(xi)·bwd(xi)))            if that is not (1, 1)
    output:     one rescale (fwd(y), 1 / bwd(y))                        if that is not (1, 1)

g is bwd(y), or 1 / c on a wide carrier, or one where the operation needs its gradient at true
scale. A cast counts as (1, 1).
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from unitify.capture.whole import Capture
from unitify.diagnostics import Diagnostic, WrongFactor
from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name
from unitify.verifying.comparison import difference_of
from unitify.verifying.equation import (
    Equation,
    Slot,
    equation,
    holds_several,
    is_complex,
    is_real,
    scaled_number,
)

#: log2 of the forward and of the backward factor of a rescale.
Factor = tuple[int, int]

_ONE: Factor = (0, 0)
_RESCALE = torch.ops.unitify.rescale.default


def validate(
    capture: Capture, graph: fx.Graph, plan: ScalePlan, rules: RuleTable
) -> tuple[Diagnostic, ...]:
    """Every difference of ``graph`` from what ``capture``, ``plan`` and ``rules`` require.

    Empty for a graph that computes the original's function and gradients. Takes linear time.
    """
    return Checker(capture, plan, rules).findings(graph)


def validate_parameters(
    module: UnitScaledModule, model: nn.Module | None = None
) -> tuple[Diagnostic, ...]:
    """Every parameter of ``module`` that is not the captured model's, divided by its scale.

    There is none right after ``transform``; training either of the two changes that. Parameters on
    the meta device are not compared. Elements below the normal range of the format may round.
    """
    # Not ``if model``: a model may define a length.
    model = module.capture.model if model is None else model
    originals = dict(model.named_parameters(remove_duplicate=False))
    found: list[Diagnostic] = []
    for name, stored in module.named_parameters():
        original = originals[name]
        if stored.is_meta or original.is_meta:
            continue
        fwd = module.plan.parameters.get(name, Scale()).fwd
        true = stored.detach() if fwd == 1.0 else stored.detach() * fwd
        difference = difference_of(name, original.detach(), true)
        if difference is not None and not difference.is_underflow:
            problem = f"the stored parameter is not the original divided by {fwd:g}"
            found.append(WrongFactor(where=name, value=name, problem=problem))
    return tuple(found)


class Checker:
    """The requirements of a capture and a plan, derived once, for any number of graphs."""

    def __init__(self, capture: Capture, plan: ScalePlan, rules: RuleTable) -> None:
        self.capture, self.plan, self.rules = capture, plan, rules
        self.originals = {n.name: n for n in capture.graph.nodes if n.op != "output"}
        self.arguments = {name: named_arguments(n) for name, n in self.originals.items()}
        #: First name of a parameter → all names of the same tensor.
        self.tied: dict[str, list[str]] = {}
        for name, first in capture.aliases.items():
            self.tied.setdefault(first, []).append(name)
        attributes = {n.target for n in capture.graph.nodes if n.op == "get_attr"}
        #: Attributes that must stay true: buffers, constants and true parameters.
        self.true = attributes - capture.aliases.keys()
        self.true |= {n for n, f in capture.aliases.items() if f in capture.true_parameters}
        self.equations: dict[str, Equation] = {}
        #: Factors between an operation and its stored result, by the operation's name.
        self.results: dict[str, Factor] = {}
        for node in self.originals.values():
            self._derive(node)
        self.graph = fx.Graph()
        self.emitted: dict[str, fx.Node] = {}
        self.position: dict[fx.Node, int] = {}

    def findings(self, graph: fx.Graph) -> tuple[Diagnostic, ...]:
        """Every difference of ``graph``, in its order, each once."""
        self.graph = graph
        self.emitted = {n.name: n for n in graph.nodes if n.name in self.originals}
        self.position = {n: i for i, n in enumerate(graph.nodes)}
        return tuple(dict.fromkeys(self._all()))

    def _all(self) -> Iterator[Diagnostic]:
        yield from self._plan()
        yield from self._nodes()
        for node in self.capture.graph.nodes:
            if node.op == "output":
                yield from self._output(node)
            elif node.name in self.emitted:
                yield from self._operation(node, self.emitted[node.name])

    # -- the plan by itself ---------------------------------------------------------------

    def _plan(self) -> Iterator[Diagnostic]:
        for name, scale in [*self.plan.values.items(), *self.plan.parameters.items()]:
            if not all(_is_power_of_two(factor) for factor in (scale.fwd, scale.bwd)):
                yield _wrong(name, f"{scale} does not consist of powers of two")
        for name, node in self.originals.items():
            if not (is_real(node) or holds_several(node)):
                continue
            if name not in self.plan.values:
                yield _wrong(name, "the plan holds no scale for it")
                continue
            is_true = node.op == "placeholder" or node.target in self.true
            if is_true and self._scale(node) != Scale():
                yield _wrong(name, f"is at {self._scale(node)}, but must stay true")
            if node.op == "get_attr" and node.target in self.capture.aliases:
                yield from self._parameter(node)

    def _parameter(self, node: fx.Node) -> Iterator[Diagnostic]:
        for name in self.tied[self.capture.aliases[str(node.target)]]:
            held = self.plan.parameters.get(name)
            if held != self._scale(node):
                problem = f"its parameter {name} is at {held}, the value at {self._scale(node)}"
                yield _wrong(node.name, problem)

    def _scale(self, node: fx.Node) -> Scale:
        return self.plan.values.get(node.name, Scale())

    # -- which operations there are -------------------------------------------------------

    def _nodes(self) -> Iterator[Diagnostic]:
        for name in self.originals.keys() - self.emitted.keys():
            yield _wrong(name, "the emitted graph does not hold it")
        order = [n.name for n in self.graph.nodes if n.name in self.originals]
        if order != [name for name in self.originals if name in self.emitted]:
            yield _wrong("graph", "the operations are in another order")
        for node in self.graph.nodes:
            if node.op == "output" or node.name in self.originals:
                continue
            if not (_is_inserted(node) or self._is_scaled_number(node)):
                yield _wrong(node.name, f"{node.target} is neither original nor a rescale")
            elif not node.users:
                yield _wrong(node.name, "nothing uses it")

    def _is_scaled_number(self, node: fx.Node) -> bool:
        return node.target is operator.mul and all(u.name in self.originals for u in node.users)

    # -- one operation --------------------------------------------------------------------

    def _derive(self, node: fx.Node) -> None:
        """The equation of ``node``, and the factors between it and its stored result."""
        fwd, bwd = self._scale(node).exponents
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and holds_several(source) and is_real(node):
            # One of several results has the units of its operation, and so has its gradient.
            taken = self.equations[source.name]
            self.results[node.name] = (taken.units - fwd, bwd - taken.gradient)
        elif node.op == "call_function":
            rule = self.rules.get(operation_name(node))
            found = self.equations[node.name] = equation(node, rule, self.plan)
            if is_real(node):
                self.results[node.name] = (found.units - fwd, bwd - found.gradient)

    def _operation(self, node: fx.Node, emitted: fx.Node) -> Iterator[Diagnostic]:
        if emitted.op != node.op or emitted.target != node.target:
            yield _wrong(node.name, f"is {emitted.target}, was {node.target}")
            return
        if node.op != "call_function":
            return
        found = self.equations.get(node.name)
        if found is not None and holds_several(node):
            fwd = self._scale(node).exponents[0]
            if fwd != found.units:
                problem = f"its results leave it at 2^{found.units}, the plan says 2^{fwd}"
                yield _wrong(node.name, problem)
        before, after = self.arguments[node.name], named_arguments(emitted)
        for name in before.keys() | after.keys():
            yield from self._argument(node, name, before.get(name), after.get(name), found)
        if found is not None:
            yield from self._order(node, before, after)

    def _argument(
        self, node: fx.Node, name: str, before: Any, after: Any, found: Equation | None
    ) -> Iterator[Diagnostic]:
        if found is not None and name in found.numbers:
            yield from self._number(node, name, *found.numbers[name], after)
            return
        if _shape(before) != _shape(after):
            yield _wrong(node.name, f"its argument {name} is {after}, was {before}")
            return
        pairs = zip(nodes_of(before), nodes_of(after), strict=True)
        for index, (operand, given) in enumerate(pairs):
            expected = self._operand_factor(node, (name, index), operand, found)
            yield from self._path(operand, given, expected, f"operand {name} of {node.name}")

    def _operand_factor(
        self, node: fx.Node, slot: Slot, operand: fx.Node, found: Equation | None
    ) -> Factor | None:
        """(ri, c·ri·g / (fwd·bwd)); None for an operand that has no scale."""
        if not (is_real(operand) or is_complex(operand)):
            return None
        if found is None:
            return _ONE
        r = found.operands.get(slot, 0)
        is_buffer = operand.target in self.true - self.capture.aliases.keys() and not (
            self.capture.attribute(str(operand.target)).requires_grad
        )
        if is_buffer or not (is_real(node) or is_complex(node) or holds_several(node)):
            # No gradient comes back here: the rescale is a plain multiplication.
            return r, r
        fwd, bwd = self._scale(operand).exponents
        return r, found.units + r + found.gradient - fwd - bwd

    def _number(
        self, node: fx.Node, name: str, before: Any, exponent: int, after: Any
    ) -> Iterator[Diagnostic]:
        number, factor = after, 1.0
        if isinstance(before, fx.Node):
            if isinstance(after, fx.Node) and after.target is operator.mul:
                number, factor = after.args  # type: ignore[assignment]
            expected: Any = self.emitted.get(before.name)
            is_right = number is expected and factor == math.ldexp(1.0, exponent)
        else:
            expected = scaled_number(before, exponent)
            is_right = not isinstance(after, fx.Node) and after == expected
        if not is_right:
            problem = f"its number {name} is {after}, expected {before} · 2^{exponent}"
            yield _wrong(node.name, problem)

    def _output(self, node: fx.Node) -> Iterator[Diagnostic]:
        emitted = next(n for n in self.graph.nodes if n.op == "output")
        if _shape(node.args[0]) != _shape(emitted.args[0]):
            yield _wrong("output", "the results are others than the original's")
            return
        pairs = zip(nodes_of(node.args[0]), nodes_of(emitted.args[0]), strict=True)
        for index, (operand, given) in enumerate(pairs):
            fwd, bwd = self._scale(operand).exponents
            expected = (fwd, -bwd) if is_real(operand) else None
            yield from self._path(operand, given, expected, f"output {index}")

    # -- what stands between two operations -----------------------------------------------

    def _path(
        self, operand: fx.Node, given: fx.Node, expected: Factor | None, use: str
    ) -> Iterator[Diagnostic]:
        """Check the rescales from ``operand`` to a use: of its result, then of the use."""
        steps, start = self._steps(given)
        if start is None or start.name != operand.name:
            yield _wrong(operand.name, f"{use} is {start}, not {operand.name}")
            return
        factors: list[Factor] = []
        for step in steps:
            forward, backward = step.args[1:3]
            if not (_is_power_of_two(forward) and _is_power_of_two(backward)):
                yield _wrong(operand.name, f"{use}: {step.name} is not by powers of two")
                return
            factors.append((_log2(forward), _log2(backward)))
        if expected is None:
            if factors:
                yield _wrong(operand.name, f"{use} has no scale, but is rescaled")
            return
        result = self.results.get(operand.name, _ONE)
        if result != _ONE:
            own = factors.pop(0) if factors else _ONE
            if own != result:
                yield _differs(operand.name, "its result", own, result)
                return
        if len(factors) > 1:
            yield _wrong(operand.name, f"{use} is rescaled {len(factors)} times")
        elif (held := factors[0] if factors else _ONE) != expected:
            yield _differs(operand.name, use, held, expected)

    def _steps(self, given: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
        """The rescales that lead to ``given``, in order, and the operation that they start at."""
        steps: list[fx.Node] = []
        while given.name not in self.originals:
            if not _is_inserted(given):
                return [], None
            if given.target is _RESCALE:
                steps.append(given)
            given = given.args[0]  # type: ignore[assignment]
        return steps[::-1], given

    def _order(
        self, node: fx.Node, arguments: Mapping[str, Any], given: Mapping[str, Any]
    ) -> Iterator[Diagnostic]:
        """Check a value taken twice: all of its uses are rescaled, or none; the last operand first.

        The order in which autograd adds gradients follows from this, and their sum is rounded.
        """
        before = [n for argument in arguments.values() for n in nodes_of(argument)]
        after = [n for argument in given.values() for n in nodes_of(argument)]
        for operand, count in Counter(before).items():
            if count == 1 or not is_real(operand) or len(after) != len(before):
                continue
            skipped = 0 if self.results.get(operand.name, _ONE) == _ONE else 1
            uses = (use for o, use in zip(before, after, strict=True) if o is operand)
            own = [self._steps(use)[0][skipped:] for use in uses]
            if any(own):
                positions = [self.position[steps[-1]] if steps else -1 for steps in own]
                if -1 in positions or positions != sorted(set(positions), reverse=True):
                    yield _wrong(operand.name, f"its uses by {node.name} sum up in another order")


def _is_inserted(node: fx.Node) -> bool:
    """Is it a rescale or a cast?"""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "unitify"


def _is_power_of_two(factor: Any) -> bool:
    return (
        isinstance(factor, float)
        and factor > 0
        and math.isfinite(factor)
        and math.frexp(factor)[0] == 0.5
    )


def _log2(factor: Any) -> int:
    return math.frexp(factor)[1] - 1


def _shape(argument: Any) -> Any:
    """An argument with a mark in place of every node. It has to be equal in both graphs."""
    if isinstance(argument, fx.Node):
        return fx.Node
    if isinstance(argument, list | tuple):
        return [_shape(item) for item in argument]
    if isinstance(argument, Mapping):
        return {key: _shape(item) for key, item in argument.items()}
    if isinstance(argument, slice):
        return [_shape(argument.start), _shape(argument.stop), _shape(argument.step)]
    if isinstance(argument, float) and math.isnan(argument):
        return "nan"
    return type(argument), argument


def _differs(value: str, where: str, held: Factor, expected: Factor) -> Diagnostic:
    parts: Iterable[str] = (
        f"{direction} factor 2^{a}, expected 2^{b}"
        for direction, a, b in zip(("forward", "backward"), held, expected, strict=True)
        if a != b
    )
    return _wrong(value, f"{where}: {'; '.join(parts)}")


def _wrong(value: str, problem: str) -> Diagnostic:
    return WrongFactor(where=value, value=value, problem=problem)
