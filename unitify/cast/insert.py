"""Casts: the one stage that loses precision, and only where a recipe asks for it.

Takes a rewritten graph and the table of choices; gives a copy of the graph with ``unitify::cast``
nodes in it. The operands of a product are cast in front of it, the gradient that arrives at its
result behind it; with ``values = "all"`` every value is cast where it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import torch
from torch import fx

import unitify.ops  # noqa: F401  (registers unitify::cast)
from unitify.capture.whole import Capture
from unitify.operations.laws import factors, holds_tensors, is_scalable
from unitify.operations.products import product_operands
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, operation_name, set_argument
from unitify.plan.scale_plan import Scale, ScalePlan
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe

_CAST = torch.ops.unitify.cast.default


def cast(
    graph: fx.Graph,
    choices: Iterable[Choice],
    recipe: Recipe,
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
) -> fx.Graph:
    """A copy of ``graph``, which ``plan`` made of ``capture``, with the casts of ``choices``."""
    chosen = {choice.value: choice for choice in choices if choice.is_cast}
    originals = {node.name: node for node in capture.graph.nodes}
    caster = _Caster(recipe)
    #: Emitted node of a result's own rescale → the name of the value that it stores.
    stored: dict[fx.Node, str] = {}
    for node in graph.nodes:
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
                    caster.operands_of(node, made, chosen[node.name], rules, units)
                if is_scalable(original):
                    caster.result(node, made, chosen[maker.name], units.gradient(node.name))
        elif node.name in chosen and original is not None:
            if _is_rescaled(original, plan, rules):
                (rescale,) = node.users
                stored[rescale] = node.name
            else:
                caster.value(node, made, chosen[node.name])
        elif node in stored:
            caster.value(node, made, chosen[stored[node]])
    return caster.graph


def _maker(node: fx.Node) -> fx.Node:
    """The operation that a value is a result of: the node itself, or that of several results."""
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) and holds_tensors(source) else node


class _Units:
    """In which units an operation of the plan takes its operands, and the gradients of its results.

    A cast rounds what is stored, whatever factor stands between it and the operation.
    """

    def __init__(self, maker: fx.Node, plan: ScalePlan, rules: RuleTable) -> None:
        def exponents(name: str) -> tuple[int, int]:
            return plan.values.get(name, Scale()).exponents

        self._exponents = exponents
        rule = rules.get(operation_name(maker))
        own = exponents(maker.name)
        found = factors(rule, maker, lambda n: exponents(n.name)[0], own[0])
        #: log2 of the factor in front of each operand, by argument and index among its nodes.
        self.operands: Mapping[tuple[str, int], int] = found.operands
        #: log2 of the units in which a result leaves, and in which its gradient arrives.
        self.result = found.output, 0 if found.true_gradient else own[1]

    def gradient(self, name: str) -> int:
        """log2 of the stored gradient's scale in the units in which the operation receives it."""
        return self._exponents(name)[1] - self.result[1]

    def is_stored(self, name: str) -> bool:
        """Does a result leave, and is it differentiated, at the scale at which it is stored?"""
        return self._exponents(name) == self.result


class _Caster:
    """The graph being made, and where in it each node of the other graph is found."""

    def __init__(self, recipe: Recipe) -> None:
        exponent = math.frexp(recipe.scale)[1] - 1
        amax = recipe.scaling == "amax"
        self.exponent = exponent
        self.options: tuple[Any, ...] = (amax, recipe.saturate)
        self.graph = fx.Graph()
        self.placed: dict[fx.Node, fx.Node] = {}
        #: Casts of operands that are there already, by operand, format and exponent.
        self.operands: dict[tuple[fx.Node, str, int], fx.Node] = {}

    def copy(self, node: fx.Node) -> fx.Node:
        made = self.graph.node_copy(node, lambda n: self.placed[n])
        made._rename(node.name)
        self.placed[node] = made
        return made

    def value(self, node: fx.Node, made: fx.Node, choice: Choice) -> None:
        """Cast a stored value for all of its users."""
        formats = choice.forward, choice.backward
        self.placed[node] = self._insert(made, *formats, self.exponent)

    def operands_of(
        self, node: fx.Node, made: fx.Node, choice: Choice, rules: RuleTable, units: _Units
    ) -> None:
        """Cast the operands of a product."""
        if not choice.forward:
            return
        headroom = choice.exponents or (self.exponent,) * len(node.all_input_nodes)
        operands = product_operands(rules[operation_name(node)], made)
        casts: dict[tuple[str, int], fx.Node] = {}
        with self.graph.inserting_before(made):
            for (name, index, operand), own in zip(operands, headroom, strict=False):
                exponent = own + units.operands.get((name, index), 0)
                casts[name, index] = self._operand(operand, choice.forward, exponent)
        arguments = named_arguments(made)
        for name in dict.fromkeys(name for name, _ in casts):
            places = count()
            argument = fx.node.map_arg(
                arguments[name],
                lambda n: casts.get((name, next(places)), n),  # noqa: B023
            )
            set_argument(made, name, argument)

    def result(self, node: fx.Node, made: fx.Node, choice: Choice, unit: int) -> None:
        """Cast the gradient of a product's result; ``unit``: log2 of its scale where it arrives."""
        exponent = (choice.exponents or (self.exponent,))[-1] + unit
        self.placed[node] = self._insert(made, "", choice.backward, exponent)

    def _operand(self, operand: fx.Node, format: str, exponent: int) -> fx.Node:
        key = operand, format, exponent
        if key not in self.operands:
            self.operands[key] = self._insert(operand, format, "", exponent)
        return self.operands[key]

    def _insert(self, node: fx.Node, forward: str, backward: str, exponent: int) -> fx.Node:
        arguments = (node, forward, backward, exponent, exponent, *self.options)
        made = self.graph.call_function(_CAST, arguments)
        made.meta = dict(node.meta)
        return made


def _is_rescaled(node: fx.Node, plan: ScalePlan, rules: RuleTable) -> bool:
    """Does a rescale of its own stand between the operation and its stored result?"""
    if node.op != "call_function" or not node.users:
        return False

    return not _Units(_maker(node), plan, rules).is_stored(node.name)


def cast_values(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the operations whose operands a graph casts."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.target is _CAST and node.args[1]:
            found.update(dict.fromkeys(user.name for user in node.users))
    return tuple(found)
