"""Mean subtraction: the operands whose channels are cast without their mean.

A mean comes from a run. Without data it is taken only of values that have running statistics, and
of values that follow from these element by element; the run is corrected by the statistics. Means
on random inputs say nothing of other values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, fx

from unitify.analysis.running_statistics import running_statistics
from unitify.capture.whole import Capture
from unitify.cast.mean_subtraction import on_grid
from unitify.formats.table import FORMATS, Format
from unitify.part import Part
from unitify.recipe.cast import Cast
from unitify.rulebook.centering import Centering, centering
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

#: The least decibels by which a mean must lower the mean square of an operand: a third of a
#: mantissa bit. A mean costs a subtraction, and may be off on other data (``examples.ptq``).
WORTH = 2.0

#: Value and axis → mean and mean square of each channel.
Known = Mapping[tuple[str, int], tuple[Tensor, Tensor]]


def with_means(part: Part, rules: RuleTable, known: Known) -> Part:
    """``part`` with the ``known`` means of operands that are cast better without them."""
    places = centerings(part, rules)

    def centered(cast: Cast) -> Cast:
        operation, argument, _ = cast.place
        if operation not in places or argument != places[operation][1].operand:
            return cast
        operand, how = places[operation]
        if (operand.name, how.axis) not in known:
            return cast
        shift = shift_of(known[operand.name, how.axis], FORMATS[cast.format])
        return cast if shift is None else replace(cast, mean=tuple(shift.tolist()))

    return part.with_casts(centered)


def shift_of(known: tuple[Tensor, Tensor], format: Format) -> Tensor | None:
    """The mean to subtract, by channel; None where that saves less than ``WORTH``.

    ``known``: mean and mean square of each channel.
    """
    mean, square = known
    shift = on_grid(mean, format)
    return shift if _saved(mean, square, shift) >= WORTH else None


def _saved(mean: Tensor, square: Tensor, shift: Tensor) -> float:
    """Decibels by which the mean square falls."""
    left = float((square - 2 * mean * shift + shift * shift).clamp_min(0.0).sum())
    whole = float(square.sum())
    return 10 * math.log10(whole / left) if left and whole else 0.0


def centerings(part: Part, rules: RuleTable) -> dict[str, tuple[fx.Node, Centering]]:
    """Contraction that is cast, by name → its operand with a mean, and how it is split."""
    cast = {c.value for c in part.choices if c.is_contraction and c.forward and c.has_weight}
    varying = from_input(part.capture)
    found = {}
    for node in part.capture.graph.nodes:
        if node.name not in cast:
            continue
        how = centering(rules[operation_name(node)], node)
        arguments = named_arguments(node)
        if how is not None and arguments[how.weight] not in varying:
            found[node.name] = arguments[how.operand], how
    return found


def from_input(capture: Capture) -> set[fx.Node]:
    """The nodes that depend on an input of the graph."""
    found: set[fx.Node] = set()
    for node in capture.graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def known_nodes(capture: Capture, rules: RuleTable) -> set[fx.Node]:
    """Values with running statistics, and values that follow from these without a contraction."""
    found: set[fx.Node] = set(running_statistics(capture, rules))
    varying = from_input(capture)
    for node in capture.graph.nodes:
        rule = rules.get(operation_name(node))
        if node in found or rule is None or rule.casts or not is_scalable(node):
            continue
        operands = [n for n in node.all_input_nodes if n in varying and is_scalable(n)]
        if operands and all(n in found for n in operands):
            found.add(node)
    return found


class Sums:
    """Sums by channel of the values of a run."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], tuple[Tensor, Tensor, int]] = {}

    def add(self, name: str, axis: int, value: Tensor) -> None:
        """Count ``value``, whose channels lie along ``axis``."""
        rows = value.detach().double().movedim(axis, -1).flatten(0, -2)
        total, squares, count = self.held.get((name, axis), (0.0, 0.0, 0))
        self.held[name, axis] = (
            total + rows.sum(0),
            squares + rows.square().sum(0),
            count + len(rows),
        )

    def known(self) -> Known:
        """Means and mean squares of all that was counted."""
        return {
            key: (total / count, squares / count)
            for key, (total, squares, count) in self.held.items()
        }
