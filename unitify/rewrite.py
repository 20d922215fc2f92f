"""The one equation: from a captured graph and a plan to the graph on stored values.

For an operation y = f(x1 … xn) with f(x…) = c·f̂(r1·x̂1 … rn·x̂n) the rewriter emits

    operand i:  rescale(x̂i, forward = ri, backward = c·ri·bwd(y) / (fwd(xi)·bwd(xi)))
    result:     rescale(f̂(…), forward = c / fwd(y), backward = 1)

and nothing else. It is right for any scales of a plan, and for any units g in which an operation
receives its gradient: the result's backward factor is then bwd(y) / g, and g replaces bwd(y) at
operands. g is one where a backward kernel is not linear in the gradient to the last bit (or is
unknown), and 1 / c on a wide carrier (``ScalePlan.received``).
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from unitify.capture.whole import Capture
from unitify.plan.fixed import has_no_gradient
from unitify.plan.scale_plan import ScalePlan
from unitify.rulebook.dimensions import evaluate_default
from unitify.rulebook.laws import Factors, factors, holds_tensors, is_complex, is_scalable
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name, set_argument

_RESCALE = torch.ops.unitify.rescale.default


def rewrite(capture: Capture, plan: ScalePlan, rules: RuleTable) -> fx.Graph:
    """The graph of ``capture`` on stored values, as a new graph.

    Every node of the original keeps its name. Only ``unitify::rescale`` is inserted.
    """
    return _Rewriter(capture, plan, rules).run()


class _Rewriter:
    def __init__(self, capture: Capture, plan: ScalePlan, rules: RuleTable) -> None:
        self.capture = capture
        self.plan = plan
        self.rules = rules
        self.exponents = {name: scale.exponents for name, scale in plan.values.items()}
        self.graph = fx.Graph()
        #: Original node → emitted node with its stored value.
        self.stored: dict[fx.Node, fx.Node] = {}
        #: Original node → log2 of the units in which its operation leaves its results.
        self.units: dict[fx.Node, int] = {}
        #: Original node → log2 of the units in which its operation receives gradients.
        self.gradient_units: dict[fx.Node, int] = {}

    def run(self) -> fx.Graph:
        for node in self.capture.graph.nodes:
            if node.op == "output":
                self._emit_output(node)
            else:
                self._emit(node)
        return self.graph

    def _fwd(self, node: fx.Node) -> int:
        return self.exponents.get(node.name, (0, 0))[0]

    def _bwd(self, node: fx.Node) -> int:
        return self.exponents.get(node.name, (0, 0))[1]

    def _emit(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and holds_tensors(source) and is_scalable(node):
            # One of several results of an operation, in the operation's units.
            made = self._copy(node)
            forward = self.units[source] - self._fwd(node)
            backward = self._bwd(node) - self.gradient_units[source]
            self.stored[node] = self._rescale(made, forward, backward) if node.users else made
            return
        rule = self.rules.get(operation_name(node))
        found = factors(rule, node, self._fwd, self._fwd(node))
        self.gradient_units[node] = self.plan.received(node.name, found)
        if node.op == "call_function":
            replaced = self._operands(node, found)
            made = self._copy(node, replaced)
            self._numbers(node, made, found, rule)
        else:
            made = self._copy(node)
        arrival = self._fwd(node) if node.op != "call_function" else found.output
        self.units[node] = arrival
        if is_scalable(node) and node.users:
            backward = (
                self._bwd(node) - self.gradient_units[node] if node.op == "call_function" else 0
            )
            made = self._rescale(made, arrival - self._fwd(node), backward)
        self.stored[node] = made

    def _operands(self, node: fx.Node, found: Factors) -> Mapping[tuple[str, int], fx.Node]:
        replaced: dict[tuple[str, int], fx.Node] = {}
        differentiable = is_scalable(node) or holds_tensors(node) or is_complex(node)
        unit = found.output + self.gradient_units[node]
        wanted: list[tuple[tuple[str, int], fx.Node, int, int]] = []
        for name, argument in named_arguments(node).items():
            for index, operand in enumerate(nodes_of(argument)):
                if is_scalable(operand):
                    forward = found.operands.get((name, index), 0)
                    backward = forward + unit - self._fwd(operand) - self._bwd(operand)
                    if not differentiable or has_no_gradient(self.capture, operand):
                        backward = forward
                    wanted.append(((name, index), operand, forward, backward))
        rescaled = {operand for _, operand, f, b in wanted if f or b}
        times = Counter(operand for _, operand, _, _ in wanted)
        # Autograd adds the gradients from one node in the order of its operands, and visits later
        # nodes first. So the gradients of a value that is used twice are added in the same order
        # only if all its rescales exist, and are made last operand first.
        for position, operand, forward, backward in reversed(wanted):
            is_ordered = times[operand] > 1 and operand in rescaled
            replaced[position] = self._rescale(
                self.stored[operand], forward, backward, always=is_ordered
            )
        return replaced

    def _copy(
        self, node: fx.Node, replaced: Mapping[tuple[str, int], fx.Node] | None = None
    ) -> fx.Node:
        made = self.graph.node_copy(node, lambda n: self.stored[n])
        made._rename(node.name)
        for (name, index), operand in (replaced or {}).items():
            argument = named_arguments(made)[name]
            set_argument(made, name, _with_node(argument, index, operand))
        return made

    def _numbers(self, node: fx.Node, made: fx.Node, found: Factors, rule: Rule | None) -> None:
        for name, exponent in found.numbers.items():
            number = named_arguments(made)[name]
            if number is None:
                assert rule is not None
                assert rule.law is not None
                number = evaluate_default(rule.law.defaults[name], node)
            if isinstance(number, fx.Node):
                with self.graph.inserting_before(made):
                    factor = math.ldexp(1.0, exponent)
                    scaled: Any = self.graph.call_function(operator.mul, (number, factor))
            else:
                scaled = _scaled_number(number, exponent)
            set_argument(made, name, scaled)

    def _rescale(self, node: fx.Node, forward: int, backward: int, always: bool = False) -> fx.Node:
        if forward == 0 and backward == 0 and not always:
            return node
        arguments = (node, math.ldexp(1.0, forward), math.ldexp(1.0, backward))
        made = self.graph.call_function(_RESCALE, arguments)
        made.meta = {k: v for k, v in node.meta.items() if k != "val"}
        if "val" in node.meta:
            made.meta["val"] = node.meta["val"]
        return made

    def _emit_output(self, node: fx.Node) -> None:
        def true(operand: fx.Node) -> fx.Node:
            stored = self.stored[operand]
            if not is_scalable(operand):
                return stored
            return self._rescale(stored, self._fwd(operand), -self._bwd(operand))

        self.graph.output(fx.node.map_arg(node.args[0], true))


def _with_node(argument: Any, index: int, node: fx.Node) -> Any:
    """``argument`` with its ``index``-th node replaced by ``node``."""
    if isinstance(argument, fx.Node):
        return node
    count = -1

    def exchange(item: Any) -> Any:
        nonlocal count
        if isinstance(item, fx.Node):
            count += 1
            return node if count == index else item
        if isinstance(item, list | tuple):
            return [exchange(i) for i in item]
        return item

    return exchange(argument)


def _scaled_number(number: Any, exponent: int) -> Any:
    if isinstance(number, sympy.Expr):
        number = float(number)
    try:
        return math.ldexp(float(number), exponent)
    except OverflowError:
        return math.copysign(math.inf, number)
