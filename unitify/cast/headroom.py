"""Headroom: by which power of two an operand is moved within its format before it is rounded.

Unit RMS is where values are stored. An operand with outliers is rounded best further down in the
range, one in a format without much below further up; signal to noise says where. What was chosen is
a constant of the graph: multiply, round, divide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.formats.signal_to_noise import NORMAL, Distribution, Histogram, best_scale
from unitify.formats.table import FORMATS
from unitify.measure import Tally, measure_into
from unitify.noise.operand_casts import operand_casts
from unitify.operations.rule_table import RuleTable
from unitify.plan.scale_plan import ScalePlan, operand_nodes
from unitify.recipe.choices import Choice

#: Value and direction (0 forward, 1 backward) → how its elements are distributed.
Distributions = Mapping[tuple[str, int], Distribution]

#: Steps an octave to which an RMS is rounded before its best scale is looked up.
_STEPS = 4


def with_headroom(
    choices: Iterable[Choice],
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    estimates: Estimates,
    distributions: Distributions | None = None,
) -> tuple[Choice, ...]:
    """``choices`` with the exponents at which operands and gradients of products are rounded best.

    ``distributions``: as measured; all are taken to be normal where None.
    """
    choices = tuple(choices)
    cast = {c.value: c for c in choices if c.is_product and c.is_cast}
    casts = operand_casts(capture, plan, rules, {n: c.forward for n, c in cast.items()})
    values = {
        (node.name, name, index): operand.name
        for node in capture.graph.nodes
        if node.name in cast
        for name, index, operand in operand_nodes(node)
    }
    exponents: dict[str, list[int]] = {name: [] for name in cast}

    def best(format: str, value: str, direction: int, scale: float) -> int:
        estimate = estimates.get(value, Rms())
        rms = (estimate.backward if direction else estimate.forward) or 0.0
        if not (rms > 0 and math.isfinite(rms)):
            return 0
        if distributions is None or (value, direction) not in distributions:
            return _best_of_normal(format, round(_STEPS * math.log2(rms / scale)))
        held = distributions[value, direction]
        return _log2(best_scale(FORMATS[format], rms / scale, held))

    for place, operand in casts.items():
        found = best(operand.format.name, values[place], 0, operand.scale)
        exponents[place[0]].append(found)
    for name, choice in cast.items():
        scale = plan.values[name].bwd
        exponents[name].append(best(choice.backward, name, 1, scale) if choice.backward else 0)
    return tuple(
        replace(c, exponents=tuple(exponents[c.value])) if c.value in exponents else c
        for c in choices
    )


@cache
def _best_of_normal(format: str, steps: int) -> int:
    return _log2(best_scale(FORMATS[format], 2.0 ** (steps / _STEPS), NORMAL))


def _log2(scale: float) -> int:
    return math.frexp(scale)[1] - 1


class _Histograms(Tally):
    """Counts of magnitudes, in bins that are the same for all tensors: 16 an octave."""

    BINS, LOWEST, HIGHEST = 16, -60, 60

    def __init__(self, wanted: frozenset[tuple[str, int]]) -> None:
        super().__init__()
        self.wanted = wanted
        self.counts: dict[tuple[str, int], Tensor] = {}

    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        if (name, direction) not in self.wanted:
            return
        place = (tensor.detach().double().abs().log2() - self.LOWEST) * self.BINS
        last = (self.HIGHEST - self.LOWEST) * self.BINS
        bins = place.nan_to_num(0.0, last, -1.0).floor().clamp(-1, last - 1).long().flatten() + 1
        counts = torch.bincount(bins.cpu(), minlength=last + 1)
        self.counts[name, direction] = self.counts.get((name, direction), 0) + counts

    def distributions(self) -> Distributions:
        found: dict[tuple[str, int], Distribution] = {}
        for key, counts in self.counts.items():
            held = counts[1:].nonzero().flatten()
            if len(held):
                first, last = int(held[0]), int(held[-1])
                steps = range(first, last + 2)
                edges = [2.0 ** (self.LOWEST + step / self.BINS) for step in steps]
                own = counts[1 + first : 2 + last].double().tolist()
                found[key] = Histogram((0.0, *edges), (float(counts[0]), *own))
        return found


def measured_distributions(
    choices: Iterable[Choice],
    capture: Capture,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
) -> Distributions:
    """How the operands and gradients of all cast products are distributed over ``batches``.

    ``batches``: lists of flat inputs; the capture's own example where None.
    """
    cast = {c.value for c in choices if c.is_product and c.is_cast}
    wanted = {(name, 1) for name in cast}
    for node in capture.graph.nodes:
        if node.name in cast:
            wanted |= {(operand.name, 0) for _, _, operand in operand_nodes(node)}
    tally = _Histograms(frozenset(wanted))
    measure_into(tally, capture, batches, loss_fn)
    return tally.distributions()
