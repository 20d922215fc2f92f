"""How the operands and gradients of products are distributed, as far as they are known.

A weight is known without data. Of an activation batches tell, of its deviation where it is centred.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.formats.signal_to_noise import Histogram
from unitify.measure.captured import measure_into
from unitify.measure.tally import Tally
from unitify.noise.operand_casts import Place
from unitify.operations.centring import centring
from unitify.operations.products import product_operands
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import operation_name
from unitify.recipe.choices import Choice, shape_numel

#: Operand by its place → how its elements are distributed; of the gradient of a product's result,
#: with "" for the argument.
Distributions = Mapping[Place, Histogram]


def weight_distributions(
    choices: Iterable[Choice], capture: Capture, rules: RuleTable
) -> Distributions:
    """Those of the operands that are weights, or views of them."""
    cast = {c.value for c in choices if c.is_product and c.forward}
    found: dict[Place, Histogram] = {}
    known: dict[str, Histogram] = {}
    for node in capture.graph.nodes:
        if node.name not in cast:
            continue
        for name, index, operand in product_operands(rules[operation_name(node)], node):
            weight = _viewed(operand, rules)
            tensor = capture.attribute(str(weight.target)) if weight.op == "get_attr" else None
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                known.setdefault(weight.name, Histogram.of(tensor))
                found[node.name, name, index] = known[weight.name]
    return found


def _viewed(node: fx.Node, rules: RuleTable) -> fx.Node:
    """What a value shows the elements of, each once."""
    while node.op == "call_function":
        rule = rules.get(operation_name(node))
        sources = node.all_input_nodes
        is_view = rule is not None and rule.moves and len(sources) == 1
        if not is_view or shape_numel(sources[0]) != shape_numel(node):
            break
        node = sources[0]
    return node


#: A place, and the mean that is subtracted there, laid along the operand.
_Use = tuple[Place, Tensor | None]


class _Histograms(Tally):
    """Counts of magnitudes, in bins that are the same for all tensors: 16 an octave."""

    BINS, LOWEST, HIGHEST = 16, -60, 60

    def __init__(self, uses: Mapping[tuple[str, int], list[_Use]]) -> None:
        super().__init__()
        self.uses = uses
        self.counts: dict[Place, Tensor] = {}

    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        uses = self.uses.get((name, direction), [])
        plain = self._counted(tensor) if any(mean is None for _, mean in uses) else None
        for place, mean in uses:
            counts = plain if mean is None else self._counted(tensor - mean.to(tensor))
            assert counts is not None
            self.counts[place] = self.counts.get(place, 0) + counts

    def _counted(self, tensor: Tensor) -> Tensor:
        place = (tensor.detach().double().abs().log2() - self.LOWEST) * self.BINS
        last = (self.HIGHEST - self.LOWEST) * self.BINS
        bins = place.nan_to_num(0.0, last, -1.0).floor().clamp(-1, last - 1).long().flatten() + 1
        return torch.bincount(bins.cpu(), minlength=last + 1)

    def distributions(self) -> Distributions:
        found: dict[Place, Histogram] = {}
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
    rules: RuleTable,
    batches: Iterable[list[Any]] | None = None,
    loss_fn: LossFunction | None = None,
) -> Distributions:
    """Those of the operands and gradients of all cast products over ``batches``.

    ``batches``: lists of flat inputs; the capture's own example where None.
    """
    cast = {c.value: c for c in choices if c.is_product and c.is_cast}
    uses: dict[tuple[str, int], list[_Use]] = {(n, 1): [((n, "", 0), None)] for n in cast}
    for node in capture.graph.nodes:
        if node.name not in cast:
            continue
        rule, mean = rules[operation_name(node)], cast[node.name].mean
        how = centring(rule, node) if mean else None
        for name, index, operand in product_operands(rule, node):
            laid = None
            if how is not None and name == how.operand:
                shape = [1] * operand.meta["val"].dim()
                shape[how.axis] = -1
                laid = torch.tensor(mean).reshape(shape)
            uses.setdefault((operand.name, 0), []).append(((node.name, name, index), laid))
    tally = _Histograms(uses)
    measure_into(tally, capture, batches, loss_fn)
    return tally.distributions()
