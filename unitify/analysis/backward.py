"""Moments of every gradient of a graph, from the loss (or the outputs) to the parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.balanced import Balance, balance_by_rule, passed_on, together
from unitify.analysis.formulas import formula_gradient
from unitify.analysis.forward import Derivation, ForwardMoments, Results, linear_names
from unitify.analysis.linear import linear_gradient, repeats, summed_gradient
from unitify.analysis.moments import Moment, add, fitted, gaussian, limited, number, realized
from unitify.analysis.quadrature import quadrature
from unitify.analysis.sampled import observed, sampled_gradients
from unitify.analysis.small_image import on_small_image
from unitify.capture.execution import loss_of
from unitify.capture.whole import Capture
from unitify.diagnostics import error_line
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name


class BackwardMoments:
    """Moments of every gradient, summed over the consumers of a value."""

    def __init__(self, forward: ForwardMoments, loss_fn: Any) -> None:
        self.of = forward
        self.loss_fn = loss_fn
        #: The moments of gradients that are not passed on yet; the RMS of those that are, of each
        #: result of a node.
        self.grads: dict[fx.Node, Results] = {}
        self.found: dict[fx.Node, list[float | None]] = {}
        #: The dimensions over which the gradient of a value sums to zero.
        self.balances: dict[fx.Node, Balance] = {}
        self.steps: dict[str, list[Derivation]] = {}
        self.differentiable = _differentiable(forward.capture)

    def rms(self, node: fx.Node) -> float | None:
        """Predicted RMS of the gradient that reaches ``node``; None without one."""
        return self.found.get(node, [None])[0]

    def run(self) -> None:
        """Walk the graph from its output to its inputs."""
        nodes = list(self.of.capture.graph.nodes)
        self._start(nodes[-1])
        for position in range(len(nodes) - 1, -1, -1):
            node = nodes[position]
            grads = self.grads.pop(node, [])
            if any(g is not None for g in grads):
                self.found[node] = [g.rms if g is not None else None for g in grads]
                if node.op == "call_function":
                    self._through(node, grads, position)

    def _start(self, output: fx.Node) -> None:
        results = [n for n in nodes_of(output.args) if n in self.differentiable]
        if self.loss_fn is not None:
            starts = self._loss_starts(output)
        else:
            scalars = [n for n in results if not shape_of(n.meta["val"])]
            starts = {n: number(1.0) for n in scalars[:1]} or {
                n: gaussian(0.0, 1.0, n.meta["val"].dim()) for n in results
            }
        for node, moment in starts.items():
            self._give(node, moment, Derivation("given", {}, moment.rms))

    def _loss_starts(self, output: fx.Node) -> dict[fx.Node, Moment]:
        """Gradients of the user's loss at outputs drawn from their predicted moments."""
        generator = torch.Generator().manual_seed(0)
        drawn: dict[fx.Node, Tensor] = {}
        flat: list[Any] = []
        for item in output.args[0]:  # type: ignore[union-attr]
            if isinstance(item, fx.Node) and is_scalable(item):
                moment = self.of.moment(item) or number(0.0)
                shape = shape_of(item.meta["val"])
                noise = torch.randn(shape, generator=generator, dtype=torch.float64)
                value = (moment.mean + moment.var.sqrt() * noise).expand(shape)
                leaf = value.to(item.meta["val"].dtype).requires_grad_(True)
                drawn[item] = leaf
                flat.append(leaf)
            else:
                flat.append(self.of.known.get(item, item) if isinstance(item, fx.Node) else item)
        with torch.enable_grad():
            loss = loss_of(self.loss_fn, self.of.capture.call.unflatten(flat))
            found = torch.autograd.grad(loss, list(drawn.values()), allow_unused=True)
        return {
            n: observed(g)
            for n, g in zip(drawn, found, strict=True)
            if g is not None and n in self.differentiable
        }

    def _give(
        self,
        node: fx.Node,
        moment: Moment,
        step: Derivation,
        index: int = 0,
        balance: Balance = None,
    ) -> None:
        if node not in self.differentiable:
            return
        held_balance = self.balances.get(node, frozenset())
        self.balances[node] = together(held_balance, balance)
        value = node.meta["val"]
        count = len(value) if isinstance(value, list | tuple) else 1
        held = self.grads.setdefault(node, [None] * count)
        shape = shape_of(value[index] if isinstance(value, list | tuple) else value)
        arrived = fitted(moment, shape)
        if node.op == "get_attr":
            arrived = arrived.uniform()
        present = held[index]
        total = arrived if present is None else add(present, arrived)
        held[index] = limited(total, self.of.elements)
        self.steps.setdefault(node.name, []).append(step)

    def _through(self, node: fx.Node, grads: Results, position: int) -> None:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and holds_tensors(source):
            assert grads[0] is not None
            step = Derivation("run", {node.name: grads[0].rms}, grads[0].rms)
            self._give(source, grads[0], step, int(node.args[1]))  # type: ignore[arg-type]
            return
        operation = Operation(node, self.of.known)
        rule = self.of.rules.get(operation_name(node))
        operands = self.of.operands(operation, rule)
        gradients, way = self._predict(operation, rule, operands, grads, position)
        for name, moments in gradients.items():
            targets = nodes_of(named_arguments(node)[name])
            balance = self._balance(operation, rule, operands, name)
            if balance is not None and not balance:
                moments = [number(0.0, m.mean.dim()) for m in moments]
            for target, moment in zip(targets, moments, strict=False):
                if is_scalable(target):
                    inputs = {node.name: next(g.rms for g in grads if g is not None)}
                    self._give(target, moment, Derivation(way, inputs, moment.rms), balance=balance)

    def _balance(
        self, operation: Operation, rule: Rule | None, operands: dict[str, Any], name: str
    ) -> Balance:
        """The balance of the gradient of one operand, by the row or from that of the result."""
        known = balance_by_rule(operation, rule, name)
        balance = self.balances.get(operation.node)
        if known is not None or balance is None:
            return known
        try:
            small = on_small_image(operation, rule, operands)
            return passed_on(small, name, operands, balance)
        except RuntimeError:
            return None

    def _predict(
        self,
        operation: Operation,
        rule: Rule | None,
        operands: dict[str, Any],
        grads: Results,
        position: int,
    ) -> tuple[dict[str, list[Moment]], str]:
        wanted = [
            n for n, a in operation.operands.items()
            if any(x in self.differentiable for x in nodes_of(a))
        ]  # fmt: skip
        if not wanted:
            return {}, "run"
        way, reason = self.of.ways[operation.node], ""
        if way in ("run", "quadrature", "formula") and rule is not None:
            try:
                return self._by_rule(operation, rule, operands, grads, wanted, position), way
            except RuntimeError as error:
                # As in the forward direction: an operation that rejects moments runs on samples.
                reason = error_line(error)
        operands = {n: m for n, m in operands.items() if n in operation.operands}
        try:
            small = on_small_image(operation, rule, operands)
            sampled = sampled_gradients(small, operands, grads, position)
        except RuntimeError as error:
            self.of.fall_back(operation, "backward", "assumed", reason or error_line(error))
            first = next(g for g in grads if g is not None)
            ndim = {n: len(operation.shape(n)) for n in wanted if n in operands}
            return {n: [gaussian(0.0, first.rms, k)] for n, k in ndim.items()}, "assumed"
        if reason:
            self.of.fall_back(operation, "backward", "sampled", reason)
        return {n: m for n, m in sampled.items() if n in wanted}, "sampled"

    def _by_rule(
        self, operation: Operation, rule: Rule, operands: dict[str, Any], grads: Results,
        wanted: list[str], seed: int,
    ) -> dict[str, list[Moment]]:  # fmt: skip
        first = grads[0]
        if rule.linear and self.of.ways[operation.node] == "run":
            named = {n: operands[n] for n in linear_names(rule, operands)}
            if first is not None and repeats(operation, rule):
                shape = operation.result_shapes[0]
                if math.prod(shape) <= self.of.elements:
                    grads = [realized(first, shape, seed)]
            filled = [g if g is not None else number(0.0, len(s))
                      for g, s in zip(grads, operation.result_shapes, strict=True)]  # fmt: skip
            found: dict[str, list[Moment]] = {}
            for name in wanted:
                summed = None
                if all(t.op == "get_attr" for t in nodes_of(operation.operands[name])):
                    summed = summed_gradient(operation, rule, named, name, filled)
                found[name] = summed or linear_gradient(operation, rule, named, name, filled)
            return found
        assert first is not None
        if rule.elementwise:
            name = rule.elementwise
            _, slope = quadrature(lambda x: operation({name: x}), operands[name])
            return {name: [Moment(slope.mean * first.mean, slope.square * first.square)]}
        # An operand without a formula gets no gradient (only its shape or type is used).
        return {
            n: [formula_gradient(operation, rule, operands, n, first, seed)]
            for n in wanted
            if n in rule.backward
        }


def _differentiable(capture: Capture) -> set[fx.Node]:
    """Values that depend on a parameter or a floating input."""
    found: set[fx.Node] = set()
    for node in capture.graph.nodes:
        if node.op == "placeholder":
            starts = is_scalable(node)
        elif node.op == "get_attr":
            starts = is_scalable(node) and str(node.target) in capture.aliases
        else:
            starts = (is_scalable(node) or holds_tensors(node)) and any(
                n in found for n in node.all_input_nodes
            )
        if starts:
            found.add(node)
    return found
