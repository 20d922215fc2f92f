"""Headroom found by trying, where signal to noise of the operand alone says too little.

Signal to noise counts power. It is flat over many octaves, since small elements hold hardly any;
but an input (a spectrum, an image) may have most of its elements there, and a recurrent layer,
which saturates, may listen to little else. So the operation itself is run with its operand cast at
each power of two, on inputs that are at hand: an input of the graph is, in the example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.formats.table import FORMATS, Format, quantise
from unitify.noise.moments import Place
from unitify.operations.operation import call_by_name
from unitify.operations.products import product_operands
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import named_arguments, operation_name
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice

#: Octaves that are tried from where the largest element is in range: one further up, many down.
_UP, _DOWN = 1, 20
#: Decibels by which the error may be above the least.
_TOLERANCE = 0.1


def with_trials(
    choices: Iterable[Choice],
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    batches: Iterable[list[Any]] | None = None,
) -> tuple[Choice, ...]:
    """``choices`` with the exponents of operands that are tried: where a result's error is least.

    In the middle of those within a tenth of a decibel: other inputs may be larger or smaller. Tried
    are inputs of the graph, and on ``batches`` (lists of flat inputs) those of recurrent layers;
    the example is run where there are none.
    """
    choices = tuple(choices)
    formats = {
        c.value: FORMATS[c.forward] for c in choices if c.is_product and c.forward and not c.mean
    }
    tried = _Trials(capture, rules, formats, inside=batches is not None)
    if not tried.names or any(p.is_meta for p in capture.model.parameters()):
        return choices
    with torch.no_grad(), unchanged(capture.model, 0):
        for inputs in [list(capture.example)] if batches is None else batches:
            tried.run(*inputs)
    best = {place: _middle(errors) for place, errors in tried.errors.items() if errors}
    nodes = {node.name: node for node in capture.graph.nodes}
    found = []
    for choice in choices:
        if choice.value in formats:
            exponents = list(choice.exponents)
            node = nodes[choice.value]
            operands = product_operands(rules[operation_name(node)], node)
            for position, (name, index, operand) in enumerate(operands):
                if (place := (choice.value, name, index)) in best:
                    exponents[position] = best[place] - plan.unit(operand.name).exponents[0]
            choice = replace(choice, exponents=tuple(exponents))
        found.append(choice)
    return tuple(found)


def _middle(errors: Mapping[int, float]) -> int:
    limit = min(errors.values()) * 10 ** (_TOLERANCE / 10)
    near = sorted(e for e, error in errors.items() if error <= limit)
    return near[len(near) // 2]


class _Trials(GraphRunner):
    """Runs a graph; beside a product the same with one operand cast, at each exponent."""

    def __init__(
        self, capture: Capture, rules: RuleTable, formats: Mapping[str, Format], inside: bool
    ) -> None:
        super().__init__(capture.graph, capture.attribute)
        self.formats = formats
        #: Place → log2 of the scale of the cast → sum of squares of the result's error.
        self.errors: dict[Place, dict[int, float]] = {}
        self.names: dict[str, list[tuple[str, int, fx.Node]]] = {}
        for node in capture.graph.nodes:
            if node.name in formats:
                rule = rules[operation_name(node)]
                told = [
                    (name, index, operand)
                    for name, index, operand in product_operands(rule, node)
                    if operand.op == "placeholder" or (inside and rule.inside and _varies(operand))
                ]
                if told:
                    self.names[node.name] = told
        #: What has to be run.
        self.needed: set[fx.Node] = set()
        for node in reversed(capture.graph.nodes):
            if node.name in self.names or any(user in self.needed for user in node.users):
                self.needed.add(node)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node as it is, and the trials beside it; nothing behind the last trial."""
        if n.op == "call_function" and n not in self.needed:
            return None
        state = torch.get_rng_state()
        result = super().run_node(n)
        after = torch.get_rng_state()
        for name, index, operand in self.names.get(n.name, ()):
            value = self.env[operand]
            if not isinstance(named_arguments(n)[name], fx.Node) or not _has_power(value):
                continue
            held = self.errors.setdefault((n.name, name, index), {})
            format = self.formats[n.name]
            highest = math.floor(math.log2(float(value.abs().max()) / format.largest))
            exponents = held or range(highest - _UP, highest + _DOWN)
            for exponent in list(exponents):
                torch.set_rng_state(state)
                scale = 2.0**exponent
                cast = quantise(value / scale, format) * scale
                arguments = {
                    own: fx.node.map_arg(given, self.env.__getitem__)
                    for own, given in named_arguments(n).items()
                }
                error = _error(call_by_name(n, {**arguments, name: cast}), result)
                held[exponent] = held.get(exponent, 0.0) + error
        torch.set_rng_state(after)
        return result


def _varies(node: fx.Node) -> bool:
    """Does it depend on an input?"""
    return node.op == "placeholder" or any(_varies(n) for n in node.all_input_nodes)


def _has_power(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not value.numel():
        return False
    return bool(value.isfinite().all()) and bool(value.any())


def _error(found: Any, true: Any) -> float:
    """Sum of squares of the difference, of all results of an operation."""
    several = isinstance(true, list | tuple)
    pairs = zip(found, true, strict=True) if several else [(found, true)]
    return sum(
        float((f.double() - t.double()).square().sum())
        for f, t in pairs
        if isinstance(t, Tensor) and t.is_floating_point()
    )
