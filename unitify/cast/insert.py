"""Inserts casts: the one stage that loses precision, and only where a recipe casts.

Takes a part with choices; gives a copy of its graph with ``unitify::cast`` nodes. The operands of a
contraction are cast in front of it. The gradient of its result is cast behind it. With ``values =
"all"`` every value is cast where it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx

import unitify.runtime  # noqa: F401  (registers unitify::cast)
from unitify.cast.mean_subtraction import UNCENTER, deviation, offset, stored_mean, unpad
from unitify.formats.table import FORMATS, BlockFormat
from unitify.part import Part
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.rulebook.centering import centering
from unitify.rulebook.contractions import contracted, contraction_operands, made_over
from unitify.rulebook.laws import factors, holds_tensors, is_scalable
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, operation_name, set_argument

_CAST = torch.ops.unitify.cast.default


def cast(part: Part, recipe: Recipe, rules: RuleTable) -> tuple[fx.Graph, dict[str, Tensor]]:
    """A copy of the graph of ``part`` with its casts, and the constants that the copy reads.

    The constants are means, by the names of the buffers that are to hold them.
    """
    chosen = {choice.value: choice for choice in part.choices if choice.is_cast}
    plan = part.plan
    originals = {node.name: node for node in part.capture.graph.nodes}
    caster = _Caster(part, recipe)
    #: Emitted node of a result's own rescale → the name of the value that it stores.
    stored: dict[fx.Node, str] = {}
    for node in part.graph.nodes:
        if node.op == "output":
            caster.graph.output(fx.node.map_arg(node.args[0], lambda n: caster.placed[n]))
            continue
        made = caster.copy(node)
        original = originals.get(node.name)
        if recipe.values == "contractions":
            maker = original and _maker(original)
            if maker is not None and maker.name in chosen:
                units = _Units(maker, plan, rules)
                if maker is original:
                    rule = rules[operation_name(node)]
                    caster.operands_of(original, made, chosen[node.name], rule, units)
                if is_scalable(original) and chosen[maker.name].backward:
                    axis = made_over(rules[operation_name(maker)], maker)
                    unit = units.gradient(node.name)
                    caster.result(node, made, chosen[maker.name], unit, axis)
        elif node.name in chosen and original is not None:
            if _is_rescaled(original, plan, rules):
                (rescale,) = node.users
                stored[rescale] = node.name
            else:
                caster.value(node, made, chosen[node.name])
        elif node in stored:
            caster.value(node, made, chosen[stored[node]])
    return caster.graph, caster.constants


def _maker(node: fx.Node) -> fx.Node:
    """The operation that a value is the result of, or one of several results."""
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) and holds_tensors(source) else node


class _Units:
    """The units in which an operation takes its operands and the gradients of its results.

    A cast rounds near unit RMS, whatever factor stands between the cast and the operation.
    """

    def __init__(self, maker: fx.Node, plan: ScalePlan, rules: RuleTable) -> None:
        def exponents(name: str) -> tuple[int, int]:
            return plan.values.get(name, Scale()).exponents

        self._exponents = exponents
        self._plan = plan
        rule = rules.get(operation_name(maker))
        own = exponents(maker.name)[0]
        found = factors(rule, maker, lambda n: exponents(n.name)[0], own)
        #: log2 of the factor in front of each operand, by argument and index among its nodes.
        self.operands: Mapping[tuple[str, int], int] = found.operands
        #: log2 of the units in which a result leaves, and in which its gradient arrives.
        self.result = found.output, plan.received(maker.name, found)

    def operand(self, value: str, argument: str, index: int = 0) -> int:
        """log2 of the scale at which an operand arrives: true value = scale × arriving value."""
        return self._exponents(value)[0] - self.operands.get((argument, index), 0)

    def gradient(self, name: str) -> int:
        """log2 of the RMS, about, of a gradient as the operation receives it."""
        return self._plan.unit(name).exponents[1] - self.result[1]

    def is_stored(self, name: str) -> bool:
        """Does a result leave the operation at its stored scale, and its gradient arrive so?"""
        return self._exponents(name) == self.result


class _Caster:
    """The graph being made, and its node for each node of the other graph."""

    def __init__(self, part: Part, recipe: Recipe) -> None:
        self.part = part
        self.options: tuple[Any, ...] = (recipe.scaling == "amax", recipe.saturate)
        self.graph = fx.Graph()
        self.placed: dict[fx.Node, fx.Node] = {}
        #: Means by the names of the buffers that hold them.
        self.constants: dict[str, Tensor] = {}
        #: Contraction → the contraction of its operand's mean, to be added to the result.
        self.offsets: dict[fx.Node, fx.Node] = {}
        #: Deviations made so far, by operand, mean, its scale and padding.
        self.deviations: dict[tuple[Any, ...], tuple[fx.Node, fx.Node]] = {}
        #: Casts of operands made so far, by operand, format, exponent and dimension.
        self.operands: dict[tuple[fx.Node, str, int, int], fx.Node] = {}

    def copy(self, node: fx.Node) -> fx.Node:
        made = self.graph.node_copy(node, lambda n: self.placed[n])
        made._rename(node.name)
        self.placed[node] = made
        return made

    def value(self, node: fx.Node, made: fx.Node, choice: Choice) -> None:
        """Cast a stored value and its gradient, for all users of the value."""
        stored = self.part.plan.values[choice.value].exponents
        moved = {c.is_gradient: self.part.exponent(c) - stored[c.is_gradient] for c in choice.casts}
        exponents = moved.get(False, 0), moved.get(True, 0)
        self.placed[node] = self._insert(made, choice.forward, choice.backward, *exponents)

    def operands_of(
        self, original: fx.Node, made: fx.Node, choice: Choice, rule: Rule, units: _Units
    ) -> None:
        """Cast the operands of a contraction."""
        arguments = named_arguments(made)
        chosen = {cast.place: cast for cast in choice.casts if not cast.is_gradient}
        operands = contraction_operands(rule, made)
        with self.graph.inserting_before(made):
            apart = self._apart(original, made, choice, rule, units) if choice.mean else {}
            casts: dict[tuple[str, int], fx.Node] = {}
            values = [value for _, _, value in contraction_operands(rule, original)]
            for (name, index, operand), value in zip(operands, values, strict=True):
                cast = chosen.get((choice.value, name, index))
                if cast is None:
                    continue
                exponent = self.part.exponent(cast) - units.operand(value.name, name, index)
                rounded = apart.get(name, operand)
                axis = contracted(rule, original, name, value)
                casts[name, index] = self._operand(rounded, cast.format, exponent, axis)
        for name in dict.fromkeys(name for name, _ in casts):
            places = count()
            argument = fx.node.map_arg(
                arguments[name],
                lambda n: casts.get((name, next(places)), n),  # noqa: B023
            )
            set_argument(made, name, argument)

    def _apart(
        self, original: fx.Node, made: fx.Node, choice: Choice, rule: Rule, units: _Units
    ) -> dict[str, fx.Node]:
        """The operand's deviation from its mean, by argument; keeps the offset of the result."""
        how = centering(rule, made)
        assert how is not None, f"{made.name} cannot be centered"
        operand = named_arguments(made)[how.operand]
        scale = units.operand(named_arguments(original)[how.operand].name, how.operand)
        pads = unpad(made, how)
        key = operand, choice.mean, scale, tuple(pads)
        if key not in self.deviations:
            name = f"mean_of_{choice.value}"
            self.constants[name] = stored_mean(how, made, choice.mean, scale)
            mean = self.graph.get_attr(name)
            self.deviations[key] = deviation(self.graph, operand, mean, pads), mean
        found, mean = self.deviations[key]
        self.offsets[made] = offset(self.graph, made, how, mean)
        return {how.operand: found}

    def result(self, node: fx.Node, made: fx.Node, choice: Choice, unit: int, axis: int) -> None:
        """Cast the gradient of the result; ``unit``: log2 of the scale at which it arrives."""
        cast = next(cast for cast in choice.casts if cast.is_gradient)
        exponent = cast.exponent + unit
        placed = self._insert(made, "", cast.format, exponent, exponent, axis)
        if made in self.offsets:
            added = self.graph.call_function(UNCENTER, (placed, self.offsets[made]))
            added.meta = dict(placed.meta)
            placed = added
        self.placed[node] = placed

    def _operand(self, operand: fx.Node, format: str, exponent: int, axis: int) -> fx.Node:
        axis = axis if isinstance(FORMATS[format], BlockFormat) else -1
        key = operand, format, exponent, axis
        if key not in self.operands:
            self.operands[key] = self._insert(operand, format, "", exponent, exponent, axis)
        return self.operands[key]

    def _insert(
        self,
        node: fx.Node,
        forward: str,
        backward: str,
        exponent: int,
        of_gradient: int,
        axis: int = -1,
    ) -> fx.Node:
        arguments = (node, forward, backward, exponent, of_gradient, *self.options)
        if axis != -1 and any(isinstance(FORMATS.get(f), BlockFormat) for f in (forward, backward)):
            arguments += (axis,)
        made = self.graph.call_function(_CAST, arguments)
        made.meta = dict(node.meta)
        return made


def _is_rescaled(node: fx.Node, plan: ScalePlan, rules: RuleTable) -> bool:
    """Does a rescale stand between the operation and its stored result?"""
    if node.op != "call_function" or not node.users:
        return False

    return not _Units(_maker(node), plan, rules).is_stored(node.name)
