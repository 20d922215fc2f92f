"""What unit scaling as published constrains, and schemes side by side, by hand-derived numbers."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from examples.scheme_study.constraints import (
    PLANNED,
    RULES,
    Constraints,
    ScaledOperation,
    constraints,
)
from examples.scheme_study.measured_schemes import compare_schemes
from examples.scheme_study.schemes import SchemeShares, predicted_schemes
from examples.scheme_study.shares import normal_range, shares
from examples.scheme_study.unit_graph import unit_graph
from unitify.analysis.analyze import analyze
from unitify.formats.losses import NOTABLE, loss
from unitify.formats.table import E4M3, E5M2, FP16
from unitify.measure.captured import measure
from unitify.rulebook.rule_table import load_rules

TABLE = load_rules()
MEAN, FORWARD = RULES


class Branch(nn.Module):
    """A layer, a residual branch that is four times as wide, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.up = nn.Linear(16, 16), nn.Linear(16, 64, bias=False)
        self.down, self.out = nn.Linear(64, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.down(F.relu(self.up(x))))


@functools.cache
def made(scheme: str) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    return unitify.transform(Branch(), (torch.randn(256, 16),), scheme=scheme, verify=False)


@functools.cache
def branch(scheme: str = "preserve") -> Constraints:
    return constraints(made(scheme).capture, made(scheme).plan, TABLE)


def predicted(module: unitify.UnitScaledModule) -> tuple[SchemeShares, ...]:
    capture, plan = module.capture, module.plan
    unit = unit_graph(capture, TABLE)
    estimates = analyze(capture, TABLE).estimates
    found = constraints(capture, plan, TABLE, estimates=estimates, unit=unit)
    return predicted_schemes(capture, plan, TABLE, found, unit, estimates)


def read(model: nn.Module, scheme: str = "preserve") -> Constraints:
    torch.manual_seed(0)
    module = unitify.transform(model, (torch.randn(256, 16),), scheme=scheme, verify=False)
    return constraints(module.capture, module.plan, TABLE)


def logs(rule: str, found: Constraints, direction: str = "backward") -> dict[str, float]:
    """log2 of the stored RMS of every value that has one."""
    stored = {v.value: getattr(v.stored[rule], direction) for v in found.values}
    return {name: math.log2(rms) for name, rms in stored.items() if rms}


def test_a_chain_has_bridges_only() -> None:
    found = read(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)))
    assert len(found.bridges) == found.edges
    assert not found.constrained
    for rule in RULES:
        assert logs(rule, found) == pytest.approx(dict.fromkeys(logs(rule, found), 0), abs=1e-9)


@pytest.mark.parametrize("scheme", ["preserve", "unit"])
def test_a_branch_is_constrained_and_what_surrounds_it_is_not(scheme: str) -> None:
    found = branch(scheme)
    by_value: dict[str, ScaledOperation] = {op.value: op for op in found.operations}
    assert {op.value for op in found.constrained} == {"linear_1", "relu", "linear_2", "add"}
    assert by_value["linear_1"].joined == ("linear",)
    # Weights that are used once hang on a bridge.
    assert all(not name.startswith("p_") for op in found.constrained for name in op.joined)
    # Table A.2 of the paper: fan_in^-1/2 forward, fan_out^-1/2 backward, b^-1/2 for a weight;
    # of a ReLU the root of two, either way.
    up, relu, down = by_value["linear_1"], by_value["relu"], by_value["linear_2"]
    assert (up.forward, up.backward["linear"]) == pytest.approx((16**-0.5, 64**-0.5))
    assert up.backward["p_up_weight"] == pytest.approx(256**-0.5)
    assert (relu.forward, relu.backward["linear_1"]) == pytest.approx((2**0.5, 2**0.5))
    assert (down.forward, down.backward["relu"]) == pytest.approx((64**-0.5, 16**-0.5))
    # The geometric mean of 2^-2 and 2^-3.
    assert [op.factor[MEAN] for op in (up, down)] == pytest.approx([2**-2.5, 2**-2.5])
    assert [op.factor[FORWARD] for op in (up, down)] == pytest.approx([2**-2, 2**-3])
    costs = {op.value: (op.off[MEAN], op.off[FORWARD]) for op in found.constrained}
    assert costs["linear_1"] == pytest.approx((0.5, 1.0))
    assert costs["relu"] == pytest.approx((0.0, 0.0), abs=1e-9)
    assert costs["linear_2"] == pytest.approx((-0.5, -1.0))
    # The skip's share of the sum is half; the branch's weight comes at its start.
    assert costs["add"] == pytest.approx((-0.5, -0.5))


@pytest.mark.parametrize("scheme", ["preserve", "unit"])
def test_gradients_are_followed_back_under_each_rule(scheme: str) -> None:
    found = branch(scheme)
    inside = {"linear_1", "relu"}
    names = {v.value for v in found.values}
    assert names == {
        "x", "linear", "linear_1", "relu", "linear_2", "add", "linear_3", "p_into_weight",
        "p_into_bias", "p_up_weight", "p_down_weight", "p_out_weight", "p_out_bias",
    }  # fmt: skip
    # Down: 2^-3 in place of 2^-2. The weight of up, on a bridge, has what arrives at its result.
    expected = {n: -1.0 if n in {*inside, "p_up_weight"} else 0.0 for n in names}
    assert logs(FORWARD, found) == pytest.approx(expected, abs=1e-6)
    # 2^-2.5; and what the weight of down is multiplied with is as small.
    smaller = {*inside, "p_up_weight", "p_down_weight"}
    expected = {n: -0.5 if n in smaller else 0.0 for n in names}
    assert logs(MEAN, found) == pytest.approx(expected, abs=1e-6)
    values = logs(MEAN, found, "forward")
    expected = {n: -0.5 if n in inside else 0.0 for n in values}
    assert values == pytest.approx(expected, abs=1e-6)
    unmoved = dict.fromkeys(values, 0.0)
    assert logs(FORWARD, found, "forward") == pytest.approx(unmoved, abs=1e-6)
    held = found.shares(MEAN, "backward")
    assert (held.unit, held.total) == (13, 13)
    assert held.octaves == pytest.approx(math.sqrt(4 * 0.5**2 / 13))
    assert found.shares(FORWARD, "backward").octaves == pytest.approx(math.sqrt(3 / 13))
    assert found.shares(PLANNED, "backward").unit >= 12


def test_gradients_under_the_forward_factor_are_those_of_autograd() -> None:
    """The true model's own gradients, on drawn weights, at the one scale that a branch has."""
    torch.manual_seed(0)
    module = unitify.transform(Branch(), (torch.randn(4096, 16),), scheme="unit", verify=False)
    found = constraints(module.capture, module.plan, TABLE)
    measured = measure(module.capture)
    predicted = logs(FORWARD, found)
    true = {n: math.log2(measured[f"{n}_multiplied"].backward or 0) for n in ("linear_1", "relu")}
    assert true["relu"] - true["linear_1"] == pytest.approx(
        predicted["relu"] - predicted["linear_1"], abs=0.1
    )
    across = true["relu"] - math.log2(measured["linear_2"].backward or 0)
    down = math.log2(next(op.forward for op in found.operations if op.value == "linear_2"))
    assert across == pytest.approx(predicted["relu"] - predicted["linear_2"] - down, abs=0.2)


def test_a_reused_weight_lies_on_a_cycle() -> None:
    shared = nn.Linear(16, 16)
    found = read(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(16, 4)))
    joined = {name for op in found.constrained for name in op.joined}
    assert any(name.startswith("p_") and name.endswith("weight") for name in joined)


class Square(nn.Module):
    """A value multiplied by itself: two uses by one operation are a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x * x)


def test_two_uses_by_one_operation_are_no_bridges() -> None:
    assert [op.value for op in read(Square()).constrained] == ["mul"]


class Split(nn.Module):
    """Several results of one operation, which meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 32), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.into(x).split(16, -1)
        return self.out(a * torch.tanh(b))


def test_results_of_one_operation_are_on_its_cycles() -> None:
    found = read(Split())
    assert {op.value for op in found.constrained} == {"tanh", "mul"}
    assert ("linear", "split") in found.bridges
    assert not {pair for pair in found.bridges if pair[0].startswith(("getitem", "split"))}
    gradients = logs(FORWARD, found)
    # All of what was split is there again in front of it.
    energy = (4 ** gradients["getitem"] + 4 ** gradients["getitem_1"]) / 2
    assert 4 ** gradients["linear"] == pytest.approx(energy)


class Heads(nn.Module):
    """Two outputs of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.into(x)
        return self.a(x), self.b(x)


def test_a_loss_outside_ties_its_outputs_together() -> None:
    torch.manual_seed(0)
    module = unitify.transform(Heads(), (torch.randn(8, 16),), verify=False)

    def loss_fn(held: tuple[Tensor, Tensor]) -> Tensor:
        return held[0].square().sum() + held[1].square().sum()

    apart = constraints(module.capture, module.plan, TABLE)
    tied = constraints(module.capture, module.plan, TABLE, loss_fn)
    assert not apart.constrained
    assert {op.value for op in tied.constrained} == {"linear_1", "linear_2"}
    assert tied.edges == apart.edges


@pytest.mark.parametrize("format", [FP16, E4M3, E5M2], ids=lambda f: f.name)
def test_the_range_of_a_format_is_where_it_loses_little(format) -> None:  # type: ignore[no-untyped-def]
    low, high = normal_range(format)
    assert loss(format, low).flushed == pytest.approx(NOTABLE)
    assert loss(format, high).saturated == pytest.approx(NOTABLE)
    assert loss(format, low * 1.01).worst < NOTABLE < loss(format, high * 1.01).worst


def test_shares_are_counted() -> None:
    # E5M2 keeps down to 2^-17 / 0.01253; E4M3 up to 448 / 2.576.
    found = shares([1.0, 0.5, 4.0, 2.0**-12, 200.0, 0.0, None, math.inf], "backward")
    assert (found.unit, found.total, found.fp16, found.fp8) == (2, 5, 5, 4)
    assert found.octaves == pytest.approx(math.sqrt((1 + 4 + 144 + math.log2(200) ** 2) / 5))
    assert shares([200.0, 2.0**-3], "forward").fp8 == 1
    assert shares([], "forward").octaves is None


def test_schemes_are_assignments_of_scales_on_one_graph() -> None:
    rows = {row.scheme.partition(" 2^")[0]: row for row in predicted(made("preserve"))}
    assert list(rows) == [
        "none", "Glorot initialization", "loss scale", "unit scaling, geometric mean",
        "unit scaling, forward factor", "unitify, preserve", "unitify, unit",
    ]  # fmt: skip
    assert rows["none"].forward == rows["loss scale"].forward
    assert {row.backward.total for row in rows.values()} == {13}
    # Biases of zero have no RMS.
    assert {name: row.forward.total for name, row in rows.items() if row.forward.total != 13} == {
        "unit scaling, geometric mean": 11, "unit scaling, forward factor": 11, "unitify, unit": 11,
    }  # fmt: skip
    found = branch()
    for rule in RULES:
        row = rows[f"unit scaling, {rule}"]
        assert (row.forward, row.backward) == tuple(
            found.shares(rule, direction) for direction in ("forward", "backward")
        )
    assert rows["unitify, unit"].forward.unit == 11
    assert rows["unitify, unit"].forward.octaves == pytest.approx(0, abs=1e-6)
    for scheme in ("preserve", "unit"):
        assert rows[f"unitify, {scheme}"].backward.unit >= 12


class Layer(nn.Module):
    """y = x W without a bias, to be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 16, bias=False), nn.Linear(16, 64, bias=False)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def test_glorot_and_a_loss_scale_by_hand() -> None:
    torch.manual_seed(0)
    x = torch.randn(1024, 64)
    model = Layer()
    module = unitify.transform(model, (x / rms(x),), verify=False)
    rows = {row.scheme: row for row in predicted(module)}
    # Variance 2/80: W has RMS 2^-2.66; x, x W, x W W' have 1, √(64 · 2/80) = 1.26 and 0.8.
    sigma, wide = math.sqrt(2 / 80), math.sqrt(64 * 2 / 80)
    both = math.sqrt(16 * 2 / 80) * wide
    held = [1.0, sigma, sigma, wide, both]
    found = rows["Glorot initialization"].forward
    assert (found.unit, found.total) == (3, 5)
    octaves = math.sqrt(sum(math.log2(v) ** 2 for v in held) / 5)
    assert found.octaves == pytest.approx(octaves, rel=1e-3)
    # Gradients: y 1; x W √(64 · 2/80); x; weights √1024 times both their neighbors.
    back = [1.0, wide, both, 32 * wide, 32 * wide]
    found = rows["Glorot initialization"].backward
    octaves = math.sqrt(sum(math.log2(v) ** 2 for v in back) / 5)
    assert found.octaves == pytest.approx(octaves, rel=1e-3)
    # As it is: unit noise at y has the mean square of W' summed over its rows in front of W'.
    up, down = (weight.detach().double() for weight in (model.up.weight, model.down.weight))
    inner = (down**2).sum(0) ** 0.5
    first = ((up**2).T @ inner**2) ** 0.5
    hidden = rms((up**2).sum(1) ** 0.5)
    back = [1.0, rms(inner), rms(first), 32 * hidden, 32 * rms(inner)]
    exponent = -round(math.log2(sorted(back)[2]))
    scaled = [x * 2.0**exponent for x in back]
    scaled[2] = back[2]  # that of the input stays true
    found = rows[f"loss scale 2^{exponent}"].backward
    octaves = math.sqrt(sum(math.log2(v) ** 2 for v in scaled) / 5)
    assert found.octaves == pytest.approx(octaves, rel=1e-2)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def test_a_model_that_a_scheme_made_has_no_other_initialization() -> None:
    rows = [row.scheme.partition(" 2^")[0] for row in predicted(made("unit"))]
    assert rows == [
        "none", "loss scale", "unit scaling, geometric mean", "unit scaling, forward factor",
        "unitify, unit",
    ]  # fmt: skip


def test_schemes_that_run() -> None:
    torch.manual_seed(0)
    rows = compare_schemes(Branch(), (torch.randn(64, 16),))
    found = {row.scheme.partition(" 2^")[0]: row for row in rows}
    assert list(found) == [
        "none", "Glorot initialization", "loss scale", "unitify, preserve", "unitify, unit",
        "unitify, u-mup",
    ]  # fmt: skip
    assert found["none"].forward == found["loss scale"].forward
    assert found["none"].backward.unit <= found["loss scale"].backward.unit
    assert found["unitify, unit"].forward.share("unit") == 1.0
    # All but the gradient of the input, which is true.
    assert found["unitify, unit"].backward.unit >= found["unitify, unit"].backward.total - 1
    assert found["unitify, preserve"].backward.share("unit") >= 12 / 13
    octaves = {name: row.forward.octaves or 0.0 for name, row in found.items()}
    assert octaves["unitify, unit"] < octaves["Glorot initialization"]
    assert json.dumps([row.as_json() for row in rows])
