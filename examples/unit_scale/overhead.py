"""What the constants of a scheme cost: multiplications counted from the graph, and step times."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import unitify
from examples.unit_scale.decoders import Size
from unitify.capture.whole import Capture, capture
from unitify.module.assembly import build
from unitify.part import Part
from unitify.plan.uniform import uniform_plan
from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.flops import flops
from unitify.rulebook.rule_table import load_rules
from unitify.rulebook.schema import operation_name


def flop_overhead(model: nn.Module, size: Size) -> float:
    """Multiplications that were added, as a share of the FLOPs of the contractions of a step."""
    tokens = size.tokens().to("meta")
    module = unitify.transform(model.to("meta"), (tokens,), scheme="unit", verify=False)
    made = module.scheme[""]
    added = sum(_elements(n) for n in module.graph.nodes for _ in range(_multiplications(n, made)))
    rules = load_rules()
    contractions = sum(
        flops(node)
        for node in module.capture.graph.nodes
        if (rule := rules.get(operation_name(node))) is not None and rule.contraction
    )
    # A contraction's two gradients are as many operations again.
    return added / (3 * contractions)


def _multiplications(node: Any, made: unitify.Reparametrization) -> int:
    """By a constant, in both passes together."""
    if operation_name(node) == "unitify.rescale.default":
        return sum(factor != 1.0 for factor in node.args[1:])
    if node.name.endswith("_multiplied"):
        return 2
    # The weight of a sum's second term.
    return 2 * ("alpha" in made.numbers.get(node.name, {}))


def _elements(node: Any) -> int:
    return math.prod(shape_of(node.meta["val"]))


def time_ratios(model: nn.Module, size: Size, steps: int = 12) -> tuple[float, float]:
    """Step time of the scheme's module over that of the captured original: eager, compiled."""
    tokens = size.tokens()
    captured = capture(model, (tokens,), {})
    plain = _plain(captured)
    module = unitify.transform(model, (tokens,), scheme="unit", verify=False)
    eager = _ratio(_step(module, tokens), _step(plain, tokens), steps)
    compiled = _ratio(
        _step(torch.compile(module), tokens), _step(torch.compile(plain), tokens), steps
    )
    return eager, compiled


def _plain(captured: Capture) -> nn.Module:
    return build(Part("", captured, uniform_plan(captured), copy.deepcopy(captured.graph)))


def _step(module: Any, tokens: Tensor) -> Callable[[], None]:
    def step() -> None:
        module(tokens).backward()

    return step


def _ratio(ours: Callable[[], None], theirs: Callable[[], None], steps: int) -> float:
    """The median over steps that take turns."""
    ratios = []
    for _ in range(2):
        ours(), theirs()
    for _ in range(steps):
        seconds = []
        for run in (ours, theirs):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
