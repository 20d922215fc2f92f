"""Casts: the one stage that loses precision, and only where a recipe asks for it.

Takes a rewritten graph and the table of choices; gives a copy of the graph with ``unitify::cast``
nodes in it. The operands of a product are cast in front of it, the gradient that arrives at its
result behind it; with ``values = "all"`` every value is cast where it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx

import unitify.ops  # noqa: F401  (registers unitify::cast)
from unitify.capture.whole import Capture
from unitify.operations.laws import factors, holds_tensors, is_scalable
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
        if node.name in chosen and node.name in originals:
            if recipe.values == "contractions":
                caster.product(node, made, chosen[node.name], rules)
            elif _is_rescaled(originals[node.name], plan, rules):
                (rescale,) = node.users
                stored[rescale] = node.name
            else:
                caster.value(node, made, chosen[node.name])
        elif node in stored:
            caster.value(node, made, chosen[stored[node]])
    return caster.graph


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

    def product(self, node: fx.Node, made: fx.Node, choice: Choice, rules: RuleTable) -> None:
        """Cast the operands of a product, and the gradient of its result."""
        rule = rules[operation_name(node)]
        arguments = named_arguments(made)
        *exponents, of_gradient = choice.exponents or (self.exponent,)
        headroom = iter(exponents)
        with self.graph.inserting_before(made):
            for name in (n for n in arguments if n in rule.products):
                argument = fx.node.map_arg(
                    arguments[name], lambda n: self._operand(n, choice.forward, headroom)
                )
                set_argument(made, name, argument)
        self.placed[node] = self._insert(made, "", choice.backward, of_gradient)

    def _operand(self, operand: fx.Node, format: str, headroom: Iterator[int]) -> fx.Node:
        if not is_scalable(operand) or not format:
            return operand
        exponent = next(headroom, self.exponent)
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

    def exponents(n: fx.Node) -> tuple[int, int]:
        return plan.values.get(n.name, Scale()).exponents

    source = node.args[0] if node.args else None
    # One result of several leaves, and is differentiated, in the units of its operation.
    maker = source if isinstance(source, fx.Node) and holds_tensors(source) else node
    rule = rules.get(operation_name(maker))
    found = factors(rule, maker, lambda n: exponents(n)[0], exponents(maker)[0])
    gradient = 0 if found.true_gradient else exponents(maker)[1]
    return exponents(node) != (found.output, gradient)


def cast_values(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the operations whose operands a graph casts."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.target is _CAST and node.args[1]:
            found.update(dict.fromkeys(user.name for user in node.users))
    return tuple(found)
