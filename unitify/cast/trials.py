"""Headroom by trying: each product is run with its operand cast at every power of two.

Signal to noise of an operand counts power, and that may lie where little depends on it: in the one
token of a language model that all others attend to, in the loud moments of a sound. What is small
beside it falls below the range of the format without a trace in that figure. So the product itself
is run, and its error counted by position (token, pixel, frame), each against its own signal. That
needs no data: outliers are made by the weights, and show on drawn inputs, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.formats.powers import exponent_of
from unitify.noise.drawn_inputs import DRAWS, drawn_inputs, toward_stated
from unitify.noise.measured import Correction
from unitify.noise.operand_casts import OperandCast, Place, operand_casts
from unitify.operations.laws import is_scalable
from unitify.operations.operation import call_by_name
from unitify.operations.products import product_operands
from unitify.operations.rule_table import Rule, RuleTable
from unitify.operations.schema import named_arguments, operation_name
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice

#: Octaves that are tried from where the largest element is just in range: further up, and down.
_UP, _DOWN = 4, 14
#: How many octaves the RMS of a value may be off what it is on inputs that were tried.
OCTAVES = 1.0
#: Decibels by which the expected error may be above the least.
_TOLERANCE = 0.1

#: log2 of the scale of a cast → what it costs.
_Errors = dict[int, float]


def with_trials(
    choices: Iterable[Choice],
    capture: Capture,
    plan: ScalePlan,
    rules: RuleTable,
    batches: Iterable[list[Any]] | None = None,
) -> tuple[Choice, ...]:
    """``choices`` with the exponents of operands that are no weights: where products suffer least.

    The middle of the powers of two within a tenth of a decibel of the least expected error; what is
    expected is that the RMS on other inputs is an octave off. ``batches``: lists of flat inputs.
    Without any, inputs of the graph are tried as the example has them, all else on drawn inputs.
    Nothing is tried where weights hold no data.
    """
    choices = tuple(choices)
    cast = {c.value: c for c in choices if c.is_product and c.forward}
    if not capture.holds_weights:
        return choices
    unmoved = [replace(c, exponents=()) for c in cast.values()]
    casts = operand_casts(unmoved, capture, plan, rules)
    errors: dict[Place, _Errors] = {}

    def run(
        inputs: list[Any], correct: Correction | None, chosen: Callable[[fx.Node], bool]
    ) -> None:
        trials = _Trials(capture, rules, casts, errors, correct, chosen)
        if trials.operands:
            trials.run(*inputs)

    with torch.no_grad(), unchanged(capture.model, 0):
        if batches is None:
            run(list(capture.example), None, lambda n: n.op == "placeholder")
            correct = toward_stated(capture, rules)
            for seed in range(DRAWS):
                drawn = drawn_inputs(capture, rules, seed)
                run(drawn, correct, lambda n: n.op != "placeholder")
        for inputs in batches or ():
            run(inputs, None, lambda n: True)
    best = {place: _middle(found) for place, found in errors.items()}
    nodes = {node.name: node for node in capture.graph.nodes}
    return tuple(
        _moved(c, nodes[c.value], rules, casts, best) if c.value in cast else c for c in choices
    )


def _moved(
    choice: Choice,
    node: fx.Node,
    rules: RuleTable,
    casts: Mapping[Place, OperandCast],
    best: Mapping[Place, int],
) -> Choice:
    exponents = list(choice.exponents)
    operands = product_operands(rules[operation_name(node)], node)
    for position, (name, index, _) in enumerate(operands):
        place = choice.value, name, index
        if place in best:
            exponents[position] = best[place] - exponent_of(casts[place].scale)
    return replace(choice, exponents=tuple(exponents))


def _middle(errors: _Errors) -> int:
    weights = {u: math.exp(-((u / OCTAVES) ** 2) / 2) for u in range(-3, 4)}
    expected = {
        e: math.fsum(w * errors[e + u] for u, w in weights.items())
        for e in errors
        if all(e + u in errors for u in weights)
    }
    limit = min(expected.values()) * 10 ** (_TOLERANCE / 10)
    near = sorted(e for e, error in expected.items() if error <= limit)
    return near[len(near) // 2]


class _Trials(GraphRunner):
    """Runs a graph; beside a product the same with one operand cast, at each exponent."""

    def __init__(
        self,
        capture: Capture,
        rules: RuleTable,
        casts: Mapping[Place, OperandCast],
        errors: dict[Place, _Errors],
        correct: Correction | None,
        chosen: Callable[[fx.Node], bool],
    ) -> None:
        super().__init__(capture.graph, capture.attribute)
        self.casts, self.errors, self.correct = casts, errors, correct
        self.rules: dict[fx.Node, Rule] = {}
        #: Product → what of it is tried.
        self.operands: dict[fx.Node, list[tuple[str, int, fx.Node]]] = {}
        varying: set[fx.Node] = set()
        for node in capture.graph.nodes:
            if node.op == "placeholder" or any(n in varying for n in node.all_input_nodes):
                varying.add(node)
            rule = rules.get(operation_name(node))
            if rule is None or not rule.casts:
                continue
            found = [
                (name, index, operand)
                for name, index, operand in product_operands(rule, node)
                if (node.name, name, index) in casts
                and operand in varying
                and chosen(operand)
                and isinstance(named_arguments(node)[name], fx.Node)
            ]
            if found:
                self.rules[node], self.operands[node] = rule, found
        #: What has to be run.
        self.needed: set[fx.Node] = set()
        for node in reversed(capture.graph.nodes):
            if node in self.operands or any(user in self.needed for user in node.users):
                self.needed.add(node)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node as it is, and the trials beside it; nothing behind the last trial."""
        if n.op == "call_function" and n not in self.needed:
            return None
        state = torch.get_rng_state()
        result = super().run_node(n)
        after = torch.get_rng_state()
        for name, index, operand in self.operands.get(n, ()):
            if _has_power(self.env[operand]):
                self._try(n, name, (n.name, name, index), self.env[operand], result, state)
        torch.set_rng_state(after)
        if self.correct is not None and isinstance(result, Tensor) and is_scalable(n):
            result = self.correct(n, result)
        return result

    def _try(
        self, n: fx.Node, name: str, place: Place, value: Tensor, result: Any, state: Tensor
    ) -> None:
        cast = self.casts[place]
        if place not in self.errors:
            largest = float((value - cast.laid(value.dim())).abs().max()) or float(
                value.abs().max()
            )
            just = math.floor(math.log2(largest / cast.format.largest)) + 1
            self.errors[place] = dict.fromkeys(range(just - _UP, just + _DOWN), 0.0)
        held = self.errors[place]
        arguments = {
            own: fx.node.map_arg(given, self.env.__getitem__)
            for own, given in named_arguments(n).items()
        }
        channels = 1 if self.rules[n].window else -1
        for exponent in held:
            torch.set_rng_state(state)
            moved = replace(cast, scale=math.ldexp(1.0, exponent)).rounded(value)
            found = call_by_name(n, {**arguments, name: moved.to(value.dtype)})
            held[exponent] += _relative(found, result, channels)


def _has_power(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or not value.numel():
        return False
    return bool(value.isfinite().all()) and bool(value.any())


def _relative(found: Any, true: Any, channels: int) -> float:
    """E[error² / value²] over the positions of all results of an operation."""
    several = isinstance(true, list | tuple)
    total, count = 0.0, 0
    for f, t in zip(found, true, strict=True) if several else [(found, true)]:
        if isinstance(t, Tensor) and t.is_floating_point() and t.dim():
            error = (f.double() - t.double()).square().sum(channels)
            signal = t.double().square().sum(channels)
            ratio = (error / signal)[signal > 0]
            total, count = total + float(ratio.sum()), count + ratio.numel()
    return total / count if count else 0.0
