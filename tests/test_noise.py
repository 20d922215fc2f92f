"""Noise of casts: as measured, the budget, and the choice that it leads to."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
import zoo
from torch import fx

from unitify.analysis.analyze import analyze
from unitify.capture.whole import Capture, capture
from unitify.formats.signal_to_noise import relative_error
from unitify.formats.table import BF16, E4M3, E5M2, Format, quantize
from unitify.noise.measured import measured_noise
from unitify.noise.mixed_precision import Sensitivity, leave_out
from unitify.noise.operand_casts import OperandCast, operand_casts
from unitify.part import Part
from unitify.plan.planner import plan
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.cast import Cast, Place
from unitify.recipe.choices import Choice
from unitify.rulebook.contractions import contraction_operands
from unitify.rulebook.rule_table import load_rules
from unitify.rulebook.schema import operation_name

RULES = load_rules()
MODELS = ["mlp", "residual_cnn", "gpt2", "llama"]
#: Elements of a tensor that is large enough to have an RMS.
ELEMENTS = 64


@cache
def captured(model: str) -> Capture:
    net, args, kwargs = zoo.build(model)
    return capture(net, args, kwargs)


@cache
def casts(model: str, format: Format) -> dict[Place, OperandCast]:
    """Both operands of every contraction, attention's aside, at the scales of the plan."""
    held = captured(model)
    scales = plan(held, analyze(held, RULES).estimates, RULES)
    contractions = [
        contraction(node, format.name)
        for node in held.graph.nodes
        if (rule := RULES.get(operation_name(node))) and rule.contraction and rule.linear
    ]
    return operand_casts(part(held, scales, *contractions), RULES)


def part(held: Capture, scales: ScalePlan, *choices: Choice) -> Part:
    return Part("", held, scales, held.graph, choices=choices)


def contraction(node: fx.Node, format: str) -> Choice:
    """The choice of a contraction whose operands are cast."""
    operands = contraction_operands(RULES[operation_name(node)], node)
    casts = (Cast((node.name, name, index), o.name, format) for name, index, o in operands)
    return Choice(node.name, operation_name(node), tuple(casts), is_contraction=True)


@pytest.mark.parametrize("model", MODELS)
def test_where_nothing_is_cast_there_is_no_error(model: str) -> None:
    noise = measured_noise(captured(model), {})
    assert {value.sqnr for value in noise.values()} == {math.inf}


def test_a_choice_costs_little_more_than_the_best() -> None:
    """Against every subset, on random budgets: at most the dearest operation more."""
    for seed in range(60):
        drawn = random.Random(seed)
        names = [f"op{i}" for i in range(9)]
        cost = {n: float(drawn.randint(1, 50)) for n in names}
        ratios = {n: 10 ** drawn.uniform(-6, -3) for n in names}
        split = Sensitivity({"out": ratios})
        bound = split.sqnr()["out"] + drawn.uniform(0.5, 12)
        left_out = leave_out(split, cost, bound)
        assert split.sqnr(left_out)["out"] >= bound
        subsets = itertools.chain.from_iterable(
            itertools.combinations(names, k) for k in range(len(names) + 1)
        )
        best = min(sum(cost[n] for n in s) for s in subsets if split.sqnr(s)["out"] >= bound)
        assert sum(cost[n] for n in left_out) <= best + max(cost.values())


def test_a_choice_of_all_outputs_and_of_what_remains() -> None:
    split = Sensitivity({"a": {"x": 1e-3, "y": 1e-6}, "b": {"x": 1e-6, "y": 1e-3}})
    assert leave_out(split, {"x": 1, "y": 1}, 40.0) == ("x", "y")
    assert leave_out(split, {"x": 1, "y": 1}, 29.0) == ()
    remaining = relative_error(BF16, 1.0) / relative_error(E4M3, 1.0)
    assert leave_out(split, {"x": 1, "y": 1}, 40.0, remaining) == ("x", "y")
    assert leave_out(split, {"x": 1, "y": 1}, 90.0, remaining) == ("x", "y")
    assert min(split.sqnr(("x", "y"), remaining).values()) < 90.0
    assert split.sqnr(("x", "y"))["a"] == math.inf


@pytest.mark.parametrize("format", [E4M3, E5M2])
def test_noise_of_a_layer_is_that_of_both_operands(format: Format) -> None:
    """By z-score: relative errors of independent factors add, and so does the product of both."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(256, 256, bias=False), torch.randn(2048, 256)
    torch.nn.init.normal_(model.weight)
    cast = {("linear", name, 0): OperandCast(format) for name in ("input", "weight")}
    found = measured_noise(capture(model, (x,), {}), cast)["linear"].relative
    own = relative_error(format, 1.0)
    # The variance of a mean square, of rounding errors and of the normal numbers themselves.
    errors = [(quantize(t, format) - t).square() for t in (x, model.weight.detach())]
    spread = math.hypot(*(float(e.std()) / math.sqrt(e.numel()) for e in errors))
    assert abs(found - (2 * own + own * own)) < 4 * spread


def test_a_cast_rounds_its_operand_alone() -> None:
    """A contraction by hand: the noise is that of rounded operands, at the scale of the plan."""
    held = captured("mlp")
    cast = {p: c for p, c in casts("mlp", E4M3).items() if p[0] == "linear"}
    (x,), weight = held.example, held.model.state_dict()["0.weight"]
    bias = held.model.state_dict()["0.bias"]
    rounded = [
        quantize(t / cast["linear", name, 0].scale, E4M3) * cast["linear", name, 0].scale
        for name, t in (("input", x), ("weight", weight))
    ]
    true = torch.nn.functional.linear(x, weight, bias)
    error = torch.nn.functional.linear(*rounded, bias) - true
    found = measured_noise(held, cast)["linear"]
    assert found.error == pytest.approx(float(error.double().square().mean().sqrt()), rel=1e-5)
    assert found.signal == pytest.approx(float(true.double().square().mean().sqrt()), rel=1e-5)


def test_headroom_moves_a_cast_by_a_power_of_two() -> None:
    held = captured("mlp")
    scales = plan(held, analyze(held, RULES).estimates, RULES)
    (linear,) = (node for node in held.graph.nodes if node.name == "linear_1")
    unmoved = part(held, scales, contraction(linear, "e4m3"))
    plain = operand_casts(unmoved, RULES)
    of_first = unmoved.with_casts(lambda c: replace(c, exponent=3 * (c.place[1] == "input")))
    moved = operand_casts(of_first, RULES)
    of_input, of_weight = ("linear_1", "input", 0), ("linear_1", "weight", 0)
    assert plain.keys() == {of_input, of_weight}
    assert moved[of_weight] == plain[of_weight]
    assert moved[of_input].scale == 8 * plain[of_input].scale


def test_each_of_a_list_of_operands_is_cast_for_itself() -> None:
    """Einsum takes its operands as one list: the errors of both reach the result."""
    left, right = torch.randn(64, 32), torch.randn(32, 48)

    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(right)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("ij,jk->ik", x, self.weight)

    held = capture(Product(), (left,), {})
    (node,) = [n for n in held.graph.nodes if operation_name(n) == "aten.einsum.default"]
    places = [(node.name, "tensors", index) for index in (0, 1)]
    for chosen in ({0}, {1}, {0, 1}):
        cast = {place: OperandCast(E4M3) for place in places if place[2] in chosen}
        operands = [
            quantize(t, E4M3) if index in chosen else t for index, t in enumerate((left, right))
        ]
        error = (operands[0] @ operands[1] - left @ right).double().square().mean().sqrt()
        assert measured_noise(held, cast)[node.name].error == pytest.approx(float(error), rel=1e-4)
