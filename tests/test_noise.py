"""Noise: predicted against measured, the budget, and the choice that it leads to."""

from __future__ import annotations

import itertools
import math
import random
from functools import cache

import pytest
import torch
import zoo

from unitify.analysis.analyse import analyse
from unitify.analysis.forward import ForwardMoments
from unitify.analysis.moments import Moment, exactly, gaussian
from unitify.capture.whole import Capture, capture
from unitify.formats.signal_to_noise import relative_error
from unitify.formats.table import BF16, E4M3, E5M2, FORMATS, Format, quantise
from unitify.noise.budget import Budget, budget, choose
from unitify.noise.cast_error import OperandCast, cast_error, relative_errors
from unitify.noise.measured import measured_noise
from unitify.noise.moments import Place
from unitify.noise.operand_casts import operand_casts
from unitify.noise.predict import Noise, ValueNoise, predict_noise
from unitify.operations.flops import flops
from unitify.operations.rule_table import load_rules
from unitify.operations.schema import operation_name
from unitify.plan.planner import plan

RULES = load_rules()
MODELS = ["mlp", "residual_cnn", "gpt2", "llama"]
#: What the prediction is held to, in decibels, for tensors large enough to have an RMS.
BAND, ELEMENTS = 3.0, 64


@cache
def captured(model: str) -> Capture:
    net, args, kwargs = zoo.build(model)
    return capture(net, args, kwargs)


@cache
def casts(model: str, format: Format) -> dict[Place, OperandCast]:
    """Both operands of every product, attention's aside, at the scales of the plan."""
    held = captured(model)
    scales = plan(held, analyse(held, RULES).estimates, RULES)
    formats = {
        node.name: format.name
        for node in held.graph.nodes
        if (rule := RULES.get(operation_name(node))) and rule.products and rule.linear
    }
    return operand_casts(held, scales, RULES, formats)


@cache
def flops_of(model: str) -> dict[str, int]:
    named = {operation for operation, *_ in casts(model, E4M3)}
    return {n.name: flops(n) for n in captured(model).graph.nodes if n.name in named}


@cache
def predicted(model: str, format: Format = E4M3) -> Noise:
    return predict_noise(captured(model), RULES, casts(model, format))


@cache
def measured(model: str) -> dict[str, ValueNoise]:
    return measured_noise(captured(model), casts(model, E4M3))


def differences(model: str, noise: Noise) -> dict[str, float]:
    """Predicted minus measured, in decibels, of every value that the casts reach."""
    return {
        name: noise.values[name].sqnr - value.sqnr
        for name, value in measured(model).items()
        if value.elements >= ELEMENTS and value.error and math.isfinite(value.signal)
    }


@pytest.mark.parametrize("model", MODELS)
def test_prediction_is_near_what_is_measured(model: str) -> None:
    found = differences(model, predicted(model))
    assert len(found) > 5
    assert {n: d for n, d in found.items() if abs(d) > BAND} == {}


@pytest.mark.parametrize("model", MODELS)
def test_another_format_is_told_apart(model: str) -> None:
    """A bit less of mantissa is 6 dB: outside the band for most values."""
    found = differences(model, predicted(model, E5M2))
    assert sum(d < -BAND for d in found.values()) > len(found) / 2


@pytest.mark.parametrize("model", MODELS)
def test_where_nothing_is_cast_there_is_no_error(model: str) -> None:
    noise = predict_noise(captured(model), RULES, {})
    assert {value.sqnr for value in noise.values.values()} == {math.inf}
    assert all(value.error == 0.0 for value in measured_noise(captured(model), {}).values())


@pytest.mark.parametrize("model", [*MODELS, "fourier", "lstm", "mixed_convolutions"])
def test_the_budget_sums_to_the_error(model: str) -> None:
    noise = predicted(model)
    split = budget(noise)
    assert set(split.operations) == {operation for operation, *_ in casts(model, E4M3)}
    for output, sqnr in split.sqnr().items():
        assert sqnr == pytest.approx(noise.values[output].sqnr, abs=1e-6)
        assert sqnr < math.inf


@pytest.mark.parametrize("model", ["mlp", "gpt2"])
def test_a_contribution_is_what_casting_that_operation_alone_does(model: str) -> None:
    noise = predicted(model)
    output = max(noise.outputs, key=lambda n: noise.values[n].elements)
    for operation, ratio in budget(noise).outputs[output].items():
        alone = {p: c for p, c in casts(model, E4M3).items() if p[0] == operation}
        found = measured_noise(captured(model), alone)[output].sqnr
        assert abs(-10 * math.log10(ratio) - found) < BAND


@pytest.mark.parametrize("model", ["gpt2", "residual_cnn"])
def test_a_choice_meets_its_bound(model: str) -> None:
    split = budget(predicted(model))
    forward = ForwardMoments(captured(model), RULES, None)
    forward.run()
    least = min(split.sqnr().values())
    assert choose(split, flops_of(model), least - 0.1) == ()
    for bound in (least + 1, least + 3, least + 8):
        left_out = choose(split, flops_of(model), bound)
        assert min(split.sqnr(left_out).values()) >= bound
        for name in left_out:
            fewer = [n for n in left_out if n != name]
            assert min(split.sqnr(fewer).values()) < bound
        kept = {p: c for p, c in casts(model, E4M3).items() if p[0] not in left_out}
        again = predict_noise(captured(model), RULES, kept, forward)
        assert min(again.values[o].sqnr for o in again.outputs) >= bound - 0.5


def test_a_choice_costs_little_more_than_the_best() -> None:
    """Against every subset, on random budgets: at most the dearest operation more."""
    for seed in range(60):
        drawn = random.Random(seed)
        names = [f"op{i}" for i in range(9)]
        cost = {n: float(drawn.randint(1, 50)) for n in names}
        ratios = {n: 10 ** drawn.uniform(-6, -3) for n in names}
        split = Budget({"out": ratios})
        bound = split.sqnr()["out"] + drawn.uniform(0.5, 12)
        left_out = choose(split, cost, bound)
        assert split.sqnr(left_out)["out"] >= bound
        subsets = itertools.chain.from_iterable(
            itertools.combinations(names, k) for k in range(len(names) + 1)
        )
        best = min(sum(cost[n] for n in s) for s in subsets if split.sqnr(s)["out"] >= bound)
        assert sum(cost[n] for n in left_out) <= best + max(cost.values())


def test_a_choice_of_all_outputs_and_of_what_remains() -> None:
    split = Budget({"a": {"x": 1e-3, "y": 1e-6}, "b": {"x": 1e-6, "y": 1e-3}})
    assert choose(split, {"x": 1, "y": 1}, 40.0) == ("x", "y")
    assert choose(split, {"x": 1, "y": 1}, 29.0) == ()
    remaining = relative_error(BF16, 1.0) / relative_error(E4M3, 1.0)
    assert choose(split, {"x": 1, "y": 1}, 40.0, remaining) == ("x", "y")
    assert choose(split, {"x": 1, "y": 1}, 90.0, remaining) == ("x", "y")
    assert min(split.sqnr(("x", "y"), remaining).values()) < 90.0
    assert split.sqnr(("x", "y"))["a"] == math.inf


def test_the_error_of_a_weight_is_known() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    cast = OperandCast(E4M3, 2.0**-3)
    error = cast_error(exactly(weight), cast)
    expected = quantise(weight * 8, E4M3) / 8 - weight
    torch.testing.assert_close(error.mean, expected.double())
    assert float(error.var.max()) == 0.0


def test_the_error_of_what_hardly_varies_has_a_mean() -> None:
    """Elements around a constant, from far less to far more than a step of the format apart."""
    step, x = 0.125, torch.randn(100_000, dtype=torch.float64)
    for std in (0.0, 0.1 * step, 0.3 * step, 4 * step):
        for mean in (1.02, 1.05, 1.4):
            moment = Moment(
                torch.tensor([mean]).double(), torch.tensor([mean**2 + std**2]).double()
            )
            found = cast_error(moment, OperandCast(E4M3))
            drawn = mean + std * x
            error = quantise(drawn, E4M3) - drawn
            assert float(found.mean) == pytest.approx(float(error.mean()), abs=step / 20)
            ratio = float(found.square) / float(error.square().mean())
            assert abs(10 * math.log10(ratio)) < BAND


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "fp16"])
def test_the_error_of_anything_else_is_that_of_its_rms(name: str) -> None:
    for rms in (2.0**-9, 0.3, 1.0, 80.0):
        found = cast_error(gaussian(0.0, rms, 2), OperandCast(FORMATS[name], 0.5))
        assert found.mean.count_nonzero() == 0
        expected = rms**2 * relative_error(FORMATS[name], rms / 0.5)
        assert float(found.square) == pytest.approx(expected, rel=0.02)


def test_the_curve_of_errors_is_exact_between_its_points() -> None:
    rms = torch.tensor([0.0, 1e-4, 0.013, 1.0, 1.09, 99.0, 777.0], dtype=torch.float64)
    found = relative_errors(E4M3, rms)
    for r, value in zip(rms.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(relative_error(E4M3, r), rel=0.05)


def test_headroom_moves_a_cast_by_a_power_of_two() -> None:
    held = captured("mlp")
    scales = plan(held, analyse(held, RULES).estimates, RULES)
    (operation,) = [n.name for n in held.graph.nodes if n.name == "linear_1"]
    plain = operand_casts(held, scales, RULES, {operation: "e4m3"})
    moved = operand_casts(held, scales, RULES, {operation: "e4m3"}, {(operation, "input", 0): 3})
    assert plain.keys() == {(operation, "input", 0), (operation, "weight", 0)}
    assert moved[operation, "weight", 0] == plain[operation, "weight", 0]
    assert moved[operation, "input", 0].scale == 8 * plain[operation, "input", 0].scale


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
    place = node.name, "tensors"
    for own in ({(*place, 0)}, {(*place, 1)}, {(*place, 0), (*place, 1)}):
        cast = {p: OperandCast(E4M3) for p in own}
        found = predict_noise(held, RULES, cast).values[node.name].sqnr
        assert abs(found - measured_noise(held, cast)[node.name].sqnr) < 1.0
