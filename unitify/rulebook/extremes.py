"""Values that carry masking constants (``-inf``, ``finfo.min``, -1e9): never rescaled.

A constant near the end of the number format has no room for a factor, and any large one would set
the scale of all elements that it does not mask. We follow it from where it enters, through every
operation that runs on stored operands, to one that restores true scale.
A value multiplied by such a constant keeps scale one, too. A mask of ones that is stored as twos,
times ``finfo.min``, is infinite before any factor can correct it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from unitify.formats.magnitudes import stored
from unitify.rulebook.laws import holds_tensors, is_scalable, takes_apart
from unitify.rulebook.rule_table import Rule, RuleTable
from unitify.rulebook.schema import named_arguments, nodes_of, operation_name

#: A number at least this large in magnitude counts as a masking constant; in a format of less
#: range, one in the last two octaves. ``finfo.min`` of bfloat16 and float32 is near 2^128, and a
#: true value of 2^100 has no finite square in either.
LIMIT = 2.0**100
#: The same for a constant that takes the place of elements, and for a mask of zeros and one other
#: number. The least that is in common use is -10,000 (BERT, GPT-2).
MASKED = 2.0**13


@dataclass(frozen=True)
class Extremes:
    """``values``: nodes whose values may hold a masking constant, or are multiplied by one.

    ``met``: those that are multiplied by one, and the products. Their gradients stay true: one
    stored near unit RMS, times ``finfo.min``, may be infinite where the smaller true one is not.
    """

    values: frozenset[fx.Node]
    met: frozenset[fx.Node]


def extreme_values(
    graph: fx.Graph, rules: RuleTable, inputs: Iterable[Any], attribute: Callable[[str], Any]
) -> frozenset[fx.Node]:
    """The nodes of ``graph`` that ``extremes`` finds."""
    return extremes(graph, rules, inputs, attribute).values


def extremes(
    graph: fx.Graph, rules: RuleTable, inputs: Iterable[Any], attribute: Callable[[str], Any]
) -> Extremes:
    """Find the masking constants of ``graph``.

    ``inputs``: the example's flat inputs; ``attribute``: gives the tensor of a ``get_attr`` node.
    A mask among inputs, buffers and constants is recognized by its contents.
    """
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    extreme = {n for n, value in zip(placeholders, inputs, strict=False) if holds_mask(value)}
    held = [(n, attribute(str(n.target))) for n in graph.nodes if n.op == "get_attr"]
    extreme |= {n for n, value in held if not _is_parameter(value) and holds_mask(value)}
    met: set[fx.Node] = set()
    #: Values that follow from flags and positions alone, such as a mask before its constant.
    flags = {n for n, value in zip(placeholders, inputs, strict=False) if _are_flags(value)}
    flags |= {n for n, value in held if _are_flags(value)}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        rule = rules.get(operation_name(node))
        is_made = rule is not None and rule.creates
        if is_made or all(n in flags or _is_size(n) for n in node.all_input_nodes):
            flags.add(node)
        if not (is_scalable(node) or holds_tensors(node)):
            continue
        arguments = named_arguments(node)
        limit = _limit(node.meta["val"]) if is_scalable(node) else LIMIT
        creates = any(
            _is_extreme(a, MASKED if node in flags or _fills(rule, name) else limit)
            for name, a in arguments.items()
        )
        if creates or any(
            operand in extreme and (takes_apart(node) or _passes(rule, name))
            for name, argument in arguments.items()
            for operand in nodes_of(argument)
        ):
            extreme.add(node)
            if multiplied := set(_met_as_stored(rule, arguments)):
                met |= {node, *multiplied}
    return Extremes(frozenset(extreme | met), frozenset(met))


def _fills(rule: Rule | None, name: str) -> bool:
    """Does this argument take the place of elements of the result?"""
    return rule is not None and not rule.terms and name in rule.linear


def _are_flags(value: Any) -> bool:
    """Does a tensor hold no number of its own: booleans, integers, or zeros and ones?"""
    if not isinstance(value, torch.Tensor) or _is_parameter(value):
        return False
    if not value.is_floating_point():
        return not value.is_complex()
    if value.is_meta:
        return False
    held = stored(value.detach())
    return bool(((held == 0) | (held == 1)).all())


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def _met_as_stored(rule: Rule | None, arguments: Mapping[str, Any]) -> Iterator[fx.Node]:
    """The operands that are multiplied at their own scales, not at that of the result."""
    if rule is None or rule.law is None or "out" in rule.law.output:
        return
    for name, argument in arguments.items():
        if _passes(rule, name):
            yield from (operand for operand in nodes_of(argument) if is_scalable(operand))


def _passes(rule: Rule | None, name: str) -> bool:
    """Does the operation run on this operand as stored, and not on its true value?"""
    if rule is None or rule.law is None:
        return False
    return dict(rule.law.factors.get(name, {})) != {name: Fraction(1)}


def holds_mask(value: Any) -> bool:
    """Does a tensor hold a masking constant?"""
    if not isinstance(value, torch.Tensor) or value.is_meta or not value.is_floating_point():
        return False
    held = stored(value.detach()).abs()
    if bool((held >= _limit(value)).any()):
        return True
    # Zeros, and one large number.
    return bool((held >= MASKED).any()) and bool(((held == 0) | (held == held.amax())).all())


def _limit(tensor: torch.Tensor) -> float:
    return min(LIMIT, torch.finfo(tensor.dtype).max / 4)


def _is_parameter(value: Any) -> bool:
    return isinstance(value, torch.nn.Parameter)


def _is_extreme(argument: Any, limit: float) -> bool:
    if isinstance(argument, bool) or not isinstance(argument, int | float):
        return False
    return isinstance(argument, float) and (math.isinf(argument) or abs(argument) >= limit)
