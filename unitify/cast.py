"""Casts: the one stage that loses precision, and only where a recipe asks for it.

The operands of every operation that contracts (linear, matmul, convolution: those whose rule
sums products) are cast in the forward pass, the gradient that arrives at its output in the
backward pass. Here a cast is simulated, there and back, as a node ``unitify::cast`` of
the graph: the arithmetic stays in the model's own type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from unitify.diagnostics import UnitifyError, UnknownRecipe
from unitify.formats import E4M3, E5M2, Format
from unitify.laws import is_scalable
from unitify.rule_table import Rule, RuleTable
from unitify.schema import named_arguments, operation_name, set_argument


@dataclass(frozen=True)
class Recipe:
    """Which formats operands and gradients of contractions are cast to."""

    name: str
    forward: Format
    backward: Format


#: E4M3 where precision matters, E5M2 where range does (Micikevicius et al. 2022, section 3).
FP8 = Recipe("fp8", E4M3, E5M2)

RECIPES: Mapping[str, Recipe] = {FP8.name: FP8}


def recipe_named(recipe: str | Recipe | None) -> Recipe | None:
    """The recipe of a name; a ``Recipe`` or None is returned as it is.

    Raises ``UnitifyError`` (U401) for an unknown name.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise UnitifyError(UnknownRecipe(name=str(recipe), known=", ".join(RECIPES)))
    return RECIPES[recipe]


def is_contraction(rule: Rule | None) -> bool:
    """Does the operation sum products of two operands, as a matrix multiplication does?"""
    return rule is not None and len(rule.linear) == 2 and rule.terms.get("out") != sympy.S.One


def cast(graph: fx.Graph, recipe: Recipe, rules: RuleTable) -> fx.Graph:
    """A copy of a rewritten graph with the casts of ``recipe`` in it."""
    made = fx.Graph()
    placed: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            made.output(fx.node.map_arg(node.args[0], lambda n: placed[n]))
            continue
        copy = made.node_copy(node, lambda n: placed[n])
        copy._rename(node.name)
        placed[node] = copy
        rule = rules.get(operation_name(node))
        if is_contraction(rule) and is_scalable(node):
            assert rule is not None
            _cast_operands(made, copy, rule, recipe.forward)
            placed[node] = _inserted(made, copy, "", recipe.backward.name)
    return made


def cast_values(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the operations whose operands and gradient a graph casts."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        if node.target is torch.ops.unitify.cast.default and node.args[1]:
            found.update(dict.fromkeys(user.name for user in node.users))
    return tuple(found)


def _cast_operands(graph: fx.Graph, node: fx.Node, rule: Rule, format: Format) -> None:
    arguments = named_arguments(node)
    for name in rule.linear:
        operand = arguments[name]
        if isinstance(operand, fx.Node) and is_scalable(operand):
            with graph.inserting_before(node):
                set_argument(node, name, _inserted(graph, operand, format.name, ""))


def _inserted(graph: fx.Graph, node: fx.Node, forward: str, backward: str) -> fx.Node:
    made = graph.call_function(torch.ops.unitify.cast.default, (node, forward, backward))
    made.meta = dict(node.meta)
    return made
