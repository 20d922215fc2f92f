"""One sweep of moments through a graph: the multiplier that gives each result its RMS.

The rules say which results are brought to unit RMS. The analysis predicts their RMS: weights are
standard normal, inputs have unit RMS, and each value is multiplied before its consumers see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, fx

from unitify.analysis.formulas import formula_values
from unitify.analysis.forward import ForwardMoments, Results, linear_names
from unitify.analysis.linear import linear_forward
from unitify.analysis.moments import Moment, exactly, gaussian, number
from unitify.capture.whole import Capture
from unitify.reparametrization import WeightedSum
from unitify.rulebook.extremes import extreme_values, holds_mask
from unitify.rulebook.laws import holds_tensors, is_scalable
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name
from unitify.scheme.options import UMuP, UnitScheme
from unitify.scheme.structure import Structure, adds, is_view, multiplies_by_number

#: A multiplier within this of one is left out: an RMS in [1/2, 2] counts as unit.
_NEGLIGIBLE = 0.05
#: Roles whose parameters have unit variance.
DRAWN = ("embedding", "hidden", "readout")


def weights_in_order(node: fx.Node, weighted: WeightedSum, read: Structure) -> tuple[float, float]:
    """The weights of the first and of the second term."""
    residual = next(r for r, _ in read.sums if r.add is node)
    weights = (weighted.skip, weighted.branch)
    return weights if node.all_input_nodes[0] is residual.skip else weights[::-1]


class Sweep(ForwardMoments):
    """Moments with multipliers. It finds ``outputs`` (multipliers of results) and ``fan_in``."""

    def __init__(
        self,
        capture: Capture,
        rules: RuleTable,
        scheme: UnitScheme,
        read: Structure,
        roles: Mapping[str, str],
        sums: Mapping[str, WeightedSum],
    ) -> None:
        super().__init__(capture, rules, weight_rms=1.0)
        self.scheme, self.read, self.roles, self.sums = scheme, read, roles, sums
        self.extreme = extreme_values(capture.graph, rules, capture.example, capture.attribute)
        self.outputs: dict[str, float] = {}
        self.fan_in: dict[str, float] = {}
        self.operand_multipliers = self._operand_multipliers()
        self.targets = self._logit_targets()
        self.uses = self._uses()

    # -- what is decided before the sweep ---------------------------------------------------

    def _rule(self, node: fx.Node) -> Rule | None:
        return self.rules.get(operation_name(node))

    def _operand_multipliers(self) -> dict[str, dict[str, float]]:
        """Multipliers of the operands of activation functions and of a loss's softmax."""
        found: dict[str, dict[str, float]] = {}
        for node in self.capture.graph.nodes:
            rule = self._rule(node)
            if rule is None:
                continue
            if rule.loss and rule.logits and self.scheme.alpha_loss_softmax != 1:
                found[node.name] = {rule.logits: self.scheme.alpha_loss_softmax}
            if rule.elementwise and self._is_multiplied(node):
                alpha = self._activation_alpha(node)
                if alpha != 1:
                    found[node.name] = {rule.elementwise: alpha}
        return found

    def _activation_alpha(self, node: fx.Node) -> float:
        stack = node.meta.get("nn_module_stack") or {}
        path = list(stack.values())[-1][0] if stack else ""
        for pattern, alpha in self.scheme.activation_alphas.items():
            if fnmatchcase(node.name, pattern) or fnmatchcase(path, pattern):
                return alpha
        return self.scheme.alpha_ffn_act

    def _logit_targets(self) -> dict[fx.Node, float]:
        """The RMS of an attention's logits, at the value whose multiplier sets it."""
        found: dict[fx.Node, float] = {}
        for logit in self.read.logits:
            node = logit
            while not self._is_multiplied(node):
                values = [n for n in node.all_input_nodes if n in self.read.active]
                if not values or node.op != "call_function":
                    break
                node = values[0]
            width = self._width(node)
            power = 0.5 if self.scheme.logits == "1/d" and width else 0.0
            found[node] = self.scheme.alpha_attn_softmax * width**-power
        return found

    def _width(self, node: fx.Node) -> float:
        """The terms of the sum that makes a logit; zero where shapes do not give it."""
        while node.op == "call_function":
            rule = self._rule(node)
            if rule is not None and rule.contraction:
                if "out" not in rule.terms:
                    return 0.0
                operation = Operation(node, {})
                return _square(linear_forward(operation, rule, _units(operation, rule)))
            values = [n for n in node.all_input_nodes if n in self.read.active]
            if not values:
                return 0.0
            node = values[0]
        return 0.0

    def _uses(self) -> dict[str, int]:
        count: dict[str, int] = {}
        for node in self.capture.graph.nodes:
            for name in self._weights_of(node):
                count[name] = count.get(name, 0) + 1
        return count

    def _weights_of(self, node: fx.Node) -> set[str]:
        """The parameters among the operands of a contraction."""
        rule = self._rule(node)
        if rule is None or not rule.contraction or not rule.linear:
            return set()
        arguments = named_arguments(node)
        operands = [n for name in rule.contraction for n in nodes_of(arguments[name])]
        return {self.read.weights[n] for n in operands if n in self.read.weights}

    def _is_multiplied(self, node: fx.Node) -> bool:
        """Is the result brought to unit RMS?"""
        read, rule = self.read, self._rule(node)
        value = node.meta.get("val")
        if node not in read.active or node in read.inputs | read.fixed:
            return False
        if not is_scalable(node) or not value.dim() or not node.users:  # type: ignore[union-attr]
            return False
        if node.name in self.sums:
            return True
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and holds_tensors(source):
            rule = self._rule(source)
            return rule is not None and rule.unit and not is_view(rule)
        if rule is None or not (rule.unit or self._is_embedding(rule)):
            return False
        if node in self.extreme or node in read.inside or node in read.in_loss:
            return False
        if node in read.passed_on or (node in read.meetings and adds(rule)):
            return False
        if (rule.elementwise or rule.logits) and not rule.contraction and node in read.absolute:
            return False
        first = next(iter(named_arguments(node).values()))
        if multiplies_by_number(node, rule):
            return len(first.users) == 1
        numbers = [
            a for a in list(named_arguments(node).values())[:2] if isinstance(a, int | float)
        ]
        return not (adds(rule) and numbers) and not self._is_plain_residual(node)

    def _is_plain_residual(self, node: fx.Node) -> bool:
        return any(r.add is node for r, _ in self.read.sums)

    def _is_embedding(self, rule: Rule) -> bool:
        return self.scheme.alpha_emb != 1 and "table" in rule.parameters.values() and (
            not rule.contraction and "out" not in (rule.law.output if rule.law else ())
        )  # fmt: skip

    # -- the sweep --------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node, value: Any) -> None:
        if is_scalable(node) and not holds_mask(value):
            self._note(node, [gaussian(0.0, 1.0, value.dim())], "given", {})
        else:
            super()._placeholder(node, value)

    def _attribute(self, node: fx.Node) -> None:
        super()._attribute(node)
        if isinstance(self.known.get(node), bool):
            # Constants must not depend on the model's present mode.
            self.known[node] = True

    def _weight(self, node: fx.Node) -> Moment:
        tensor = self.capture.attribute(str(node.target))
        name = self.capture.aliases.get(str(node.target))
        role = self.roles.get(name, "other") if name is not None else "other"
        if role in DRAWN:
            return gaussian(0.0, self._drawn_rms(tensor), tensor.dim())
        if role == "gain":
            return number(1.0, tensor.dim())
        if role == "bias" and self.scheme.biases == "zero":
            return number(0.0, tensor.dim())
        return super()._weight(node)

    def _drawn_rms(self, tensor: Tensor) -> float:
        keeps = self.scheme.init == "keep" and not tensor.is_meta
        return (exactly(tensor).rms if keeps else 1.0) or 1.0

    def operands(self, operation: Operation, rule: Rule | None) -> dict[str, Any]:
        """Moments of the operands, multiplied."""
        found = super().operands(operation, rule)
        for name, multiplier in self.operand_multipliers.get(operation.node.name, {}).items():
            found[name] = _times(found[name], multiplier)
        return found

    def _note(self, node: fx.Node, results: Results, way: str, inputs: Mapping[str, float]) -> None:
        value = node.meta.get("val")
        if node in self.read.inputs and node not in self.extreme and isinstance(value, Tensor):
            # A value computed from inputs alone counts as an input.
            results = [gaussian(0.0, 1.0, value.dim())]
        multiplier = self._multiplier(node, results)
        if abs(multiplier - 1) > _NEGLIGIBLE:
            self.outputs[node.name] = multiplier
            results = [m and _times(m, multiplier) for m in results]
        super()._note(node, results, way, inputs)

    def _multiplier(self, node: fx.Node, results: Results) -> float:
        weights = self._weights_of(node)
        unit = self._unit_rms(node) if weights else 0.0
        for name in weights:
            self.fan_in[name] = unit**2
        if not self._is_multiplied(node):
            return 1.0
        rule = self._rule(node)
        if node.name in self.sums:
            return weights_in_order(node, self.sums[node.name], self.read)[0]
        if rule is not None and rule.width and self.scheme.attention == "none":
            return 1.0
        first = results[0]
        rms = first.rms if first is not None else 0.0
        if weights:
            plain = unit * math.prod(self._drawn_rms(self.capture.attribute(n)) for n in weights)
            # All steps of a recurrence have the same multiplier.
            is_reused = any(self.uses[name] > 1 for name in weights)
            rms = plain if is_reused or abs(rms - plain) < _NEGLIGIBLE * plain else rms
        if not rms > 0 or not math.isfinite(rms):
            return 1.0
        return self._target(node, rule, weights, unit) / rms * self._padding(node, rule)

    def _target(self, node: fx.Node, rule: Rule | None, weights: set[str], unit: float) -> float:
        """The RMS to which the result of an operation is brought."""
        if node in self.targets:
            return self.targets[node]
        if any(self.roles[name] == "readout" for name in weights) or (
            weights and node in self.read.readouts
        ):
            width = 1 / unit if isinstance(self.scheme, UMuP) and unit else 1.0
            return self.scheme.alpha_out * width
        return self.scheme.alpha_emb if rule is not None and self._is_embedding(rule) else 1.0

    def _padding(self, node: fx.Node, rule: Rule | None) -> float:
        """The correction for ``tokens`` keys: the variance of a mean of n values is 1/n."""
        if rule is None or not rule.width or self.scheme.tokens is None:
            return 1.0
        operation = Operation(node, self.known)
        values = formula_values(operation, rule, self.operands(operation, rule))
        keys, attended = values["keys"], 1 / float((1 / values["n"]).mean())
        share = attended / (keys / _harmonic(keys)) if attended < keys else 1.0
        counted = share * self.scheme.tokens
        if attended < keys:
            counted /= _harmonic(self.scheme.tokens)
        return math.sqrt(counted / attended)

    def _unit_rms(self, node: fx.Node) -> float:
        """√(terms of the sum): the RMS of the result for unit operands."""
        rule = self._rule(node)
        assert rule is not None
        operation = Operation(node, self.known)
        return math.sqrt(_square(linear_forward(operation, rule, _units(operation, rule))))


def _units(operation: Operation, rule: Rule) -> dict[str, Any]:
    """Moments of standard normal operands, and zeros for what is added."""
    named: dict[str, Any] = {}
    for name in linear_names(rule, operation.operands):
        argument = operation.operands[name]
        rms = 1.0 if name in rule.linear else 0.0
        if isinstance(argument, list):
            named[name] = [gaussian(0.0, rms, len(operation.shape_of(a))) for a in argument]
        else:
            named[name] = gaussian(0.0, rms, len(operation.shape(name)))
    return named


def _square(results: list[Moment]) -> float:
    return results[0].rms ** 2


def _times(moment: Any, multiplier: float) -> Any:
    if isinstance(moment, list):
        return [_times(m, multiplier) for m in moment]
    return moment.times(multiplier)


def _harmonic(count: float) -> float:
    """Σ 1/k for k up to ``count``."""
    return math.log(count) + 0.5772156649 + 1 / (2 * count)
