"""Means of the operands of products, by channel, where a cast is better off without them.

Without data a mean is taken from what a trained model itself keeps: statistics of a normalisation
(``analysis.stated``), and what follows from them element by element. What is guessed on the way
through weights is no ground to shift a tensor on. With data it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.forward import ForwardMoments
from unitify.analysis.moments import fit
from unitify.analysis.stated import stated_moments
from unitify.capture.execution import run_captured, unchanged
from unitify.capture.whole import Capture
from unitify.cast.centring import on_grid
from unitify.formats.table import FORMATS
from unitify.operations.centring import Centring, centring, channels
from unitify.operations.laws import is_scalable
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, operation_name
from unitify.recipe.choices import Choice

#: What centring has to take off the mean square of an operand, in decibels: it costs a subtraction,
#: and a mean may be off.
WORTH = 2.0

#: Value and axis → mean and mean square of each channel.
Known = Mapping[tuple[str, int], tuple[Tensor, Tensor]]


def with_means(
    choices: Iterable[Choice], capture: Capture, rules: RuleTable, known: Known
) -> tuple[Choice, ...]:
    """``choices`` with the means of operands that are better off without, as far as ``known``."""
    places = _centrings(choices := tuple(choices), capture, rules)
    found = []
    for choice in choices:
        if choice.value in places:
            operand, how = places[choice.value]
            if (operand.name, how.axis) in known:
                mean, square = known[operand.name, how.axis]
                shift = on_grid(mean, FORMATS[choice.forward])
                if _saved(mean, square, shift) >= WORTH:
                    choice = replace(choice, mean=tuple(shift.tolist()))
        found.append(choice)
    return tuple(found)


def _saved(mean: Tensor, square: Tensor, shift: Tensor) -> float:
    """Decibels by which the mean square falls."""
    left = float((square - 2 * mean * shift + shift * shift).clamp_min(0.0).sum())
    whole = float(square.sum())
    return 10 * math.log10(whole / left) if left and whole else 0.0


def _centrings(
    choices: Iterable[Choice], capture: Capture, rules: RuleTable
) -> dict[str, tuple[fx.Node, Centring]]:
    """By name of a product that is cast: the operand to be centred, and how."""
    cast = {c.value for c in choices if c.is_product and c.forward and c.has_weight}
    from_input = _from_input(capture)
    found = {}
    for node in capture.graph.nodes:
        if node.name not in cast:
            continue
        how = centring(rules[operation_name(node)], node)
        arguments = named_arguments(node)
        if how is not None and arguments[how.weight] not in from_input:
            found[node.name] = arguments[how.operand], how
    return found


def _from_input(capture: Capture) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in capture.graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


# -- without data ------------------------------------------------------------------------


def told_means(
    choices: Iterable[Choice], capture: Capture, rules: RuleTable, moments: ForwardMoments
) -> Known:
    """Means that follow from statistics which the model keeps."""
    told = _told(capture, rules)
    nodes = {node.name: node for node in capture.graph.nodes}
    found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for name, (operand, how) in _centrings(choices, capture, rules).items():
        moment = moments.moment(operand)
        if operand in told and moment is not None:
            count = channels(how, nodes[name])
            found[operand.name, how.axis] = (
                _along(moment.mean, how.axis, count),
                _along(moment.square, how.axis, count),
            )
    return found


def _told(capture: Capture, rules: RuleTable) -> set[fx.Node]:
    """Values whose moments are stated, and what is made of them without a sum of products."""
    found: set[fx.Node] = set(stated_moments(capture, rules))
    varying = _from_input(capture)
    for node in capture.graph.nodes:
        rule = rules.get(operation_name(node))
        if node in found or rule is None or rule.casts or not is_scalable(node):
            continue
        operands = [n for n in node.all_input_nodes if n in varying and is_scalable(n)]
        if operands and all(n in found for n in operands):
            found.add(node)
    return found


def _along(array: Tensor, axis: int, count: int) -> Tensor:
    """One number a channel: other dimensions averaged."""
    shape = [1] * array.dim()
    shape[axis] = count
    return fit(array, tuple(shape)).expand(shape).flatten()


# -- with data ----------------------------------------------------------------------------


def measured_means(
    choices: Iterable[Choice],
    capture: Capture,
    rules: RuleTable,
    batches: Iterable[list[Any]] | None = None,
) -> Known:
    """Means over ``batches``: lists of flat inputs; the capture's own example where None."""
    axes: dict[str, set[int]] = {}
    for operand, how in _centrings(choices, capture, rules).values():
        axes.setdefault(operand.name, set()).add(how.axis)
    sums: dict[tuple[str, int], list[Any]] = {}

    def observe(node: fx.Node, value: Any) -> None:
        for axis in axes.get(node.name, ()):
            rows = value.detach().double().movedim(axis, -1).flatten(0, -2)
            held = sums.setdefault((node.name, axis), [0.0, 0.0, 0])
            held[0] = held[0] + rows.sum(0)
            held[1] = held[1] + rows.square().sum(0)
            held[2] += len(rows)

    given = [list(capture.example)] if batches is None else batches
    with torch.no_grad(), unchanged(capture.model):
        for inputs in given:
            run_captured(capture, inputs, observe=observe)
    return {key: (total / count, squares / count) for key, (total, squares, count) in sums.items()}
