"""The plan: which scales are chosen, what a plan may hold, and its form as data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conversion import RULES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import unitify
from unitify.capture.whole import Capture, capture
from unitify.estimates import Rms
from unitify.measure.captured import measure
from unitify.module.assembly import build
from unitify.part import Part
from unitify.plan.planner import plan
from unitify.plan.scale_plan import Scale, ScalePlan, check_plan
from unitify.rewrite import rewrite
from unitify.verifying.running import verify_by_running

exponents = st.integers(-120, 120)
scales = st.builds(Scale.of_exponents, exponents, exponents)
names = st.text(min_size=1, max_size=12)


@given(st.builds(ScalePlan, *[st.dictionaries(names, scales)] * 2, st.dictionaries(names, names)))
def test_plan_to_json_to_plan(chosen: ScalePlan) -> None:
    assert ScalePlan.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert ScalePlan.from_json(json.loads(chosen.dumps())) == chosen


@pytest.mark.parametrize(
    "data", [{}, [], {"values": 3, "parameters": {}}, {"values": {"x": [1]}, "parameters": {}}]
)
def test_what_is_not_a_plan_is_refused(data: object) -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        ScalePlan.from_json(data)  # type: ignore[arg-type]
    assert caught.value.code == "U301"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("shift", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.relu(self.first(x)) * self.shift)
        return F.layer_norm(y, (4,), eps=0.0)


@pytest.fixture(scope="module")
def small() -> Capture:
    torch.manual_seed(0)
    return capture(Small(), (torch.randn(32, 8),), {})


def test_values_are_stored_near_unit_rms(small: Capture) -> None:
    estimates = measure(small)
    chosen = plan(small, estimates, RULES)
    for name, scale in chosen.values.items():
        if name in ("x", "b_shift"):
            assert scale == Scale()
            continue
        forward = estimates[name].forward
        assert forward is not None
        assert 0.5 <= forward / scale.fwd <= 2.0, name
        backward = estimates[name].backward
        assert backward is not None
        assert 0.5 <= backward / scale.bwd <= 2.0, name


def test_a_value_keeps_the_scale_at_which_it_arrives(small: Capture) -> None:
    """Within a factor of two of unit RMS nothing is inserted."""
    estimates = {name: Rms(1.4, 0.8) for name in measure(small)}
    chosen = plan(small, estimates, RULES)
    assert set(chosen.values.values()) == {Scale()}


def test_no_estimate_is_no_reason_to_rescale(small: Capture) -> None:
    for nothing in (Rms(), Rms(0.0, 0.0), Rms(float("nan"), float("inf"))):
        chosen = plan(small, dict.fromkeys(measure(small), nothing), RULES)
        assert set(chosen.values.values()) == {Scale()}


shifts = st.integers(-20, 20)


def shifted(parameters: dict[str, int]) -> tuple[ScalePlan, ScalePlan]:
    """Plans of one model, and of it with parameters multiplied by powers of two."""
    torch.manual_seed(0)
    model, x = Small(), torch.randn(32, 8)
    captured = capture(model, (x,), {})
    before = plan(captured, measure(captured), RULES)
    with torch.no_grad():
        for name, shift in parameters.items():
            model.get_parameter(name).mul_(2.0**shift)
    return before, plan(captured, measure(captured), RULES)


def moved(scale: Scale, forward: int, backward: int = 0) -> Scale:
    return Scale(scale.fwd * 2.0**forward, scale.bwd * 2.0**backward)


@given(shifts)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_weight_times_a_power_of_two_moves_its_scale(k: int) -> None:
    """What follows is normalized: its own scale and its result's move, and nothing else does."""
    before, after = shifted({"last.weight": k, "last.bias": k})
    for name, scale in before.values.items():
        if name in ("p_last_weight", "p_last_bias", "linear_1"):
            assert after.values[name] == moved(scale, k, -k), name
        else:
            assert after.values[name] == scale, name


@given(shifts)
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_factor_between_two_layers_moves_what_is_between(k: int) -> None:
    """The function is the same; so is every scale outside of the two layers."""
    before, after = shifted({"first.weight": k, "first.bias": k, "last.weight": -k})
    for name, scale in before.values.items():
        if name in ("x", "b_shift", "p_last_bias", "linear_1", "layer_norm"):
            assert after.values[name] == scale, name
        elif name == "p_last_weight":
            assert after.values[name] == moved(scale, -k, k)
        else:
            assert after.values[name] == moved(scale, k, -k), name


def test_an_absurd_estimate_is_not_followed(small: Capture) -> None:
    """Were it, factors between it and its neighbors would leave the range of float32."""
    estimates = measure(small)
    absurd = {**estimates, "relu": Rms(2.0**90, 2.0**-95), "mul": Rms(2.0**-80, 2.0**85)}
    chosen = plan(small, absurd, RULES)
    module = build(Part("", small, chosen, rewrite(small, chosen, RULES)))
    found = verify_by_running(small.model, module, small.example, {})
    assert found.exact, found.differences


def test_tied_parameters_have_one_scale() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 8)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.embedding(tokens))

    captured = capture(Tied(), (torch.randint(0, 9, (2, 5)),), {})
    chosen = plan(captured, measure(captured), RULES)
    assert chosen.parameters["embedding.weight"] == chosen.parameters["head.weight"]


def test_a_mask_is_not_rescaled() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = (x * 100).masked_fill(x > 1, torch.finfo(x.dtype).min)
            return torch.softmax(scores, -1)

    captured = capture(Masked(), (torch.randn(4, 8),), {})
    chosen = plan(captured, {n.name: Rms(64.0, 1.0) for n in captured.graph.nodes}, RULES)
    assert chosen.values["mul"].fwd == 64.0
    assert chosen.values["masked_fill"].fwd == 1.0


class ConstantMask(nn.Module):
    """Attention whose mask is a tensor that is made while the model is recorded, or a buffer."""

    def __init__(self, is_buffer: bool) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        smallest = torch.tensor(torch.finfo(torch.float32).min)
        self.register_buffer("smallest", smallest if is_buffer else None)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        scores = 0.05 * self.query(x) @ self.key(x).mT
        smallest = self.smallest
        if smallest is None:
            smallest = torch.tensor(torch.finfo(x.dtype).min)
        return torch.where(keep, scores, smallest).softmax(-1) @ x


@pytest.mark.parametrize("is_buffer", [True, False])
def test_a_mask_held_in_a_tensor_is_not_rescaled(is_buffer: bool) -> None:
    model, x = ConstantMask(is_buffer), torch.randn(2, 4, 8)
    keep = torch.ones(2, 4, 4, dtype=torch.bool)
    module = unitify.transform(model, (x, keep))
    keep[0, 1] = False  # a row that is masked altogether is uniform, not NaN
    assert torch.equal(module(x, keep), model(x, keep))


def test_absurd_gradients_do_not_leave_the_range_of_the_format() -> None:
    class Steep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Around its poles the tangent has no mean square; the estimate is some huge number,
            # which nothing says that these angles do not reach.
            return (4 * (1.4 * F.normalize(x, dim=-1)).tan()).exp()

    x = torch.randn(2, 8)
    assert unitify.estimate(Steep(), x, scales="analysis")["tan"].backward > 2.0**126
    assert unitify.transform(Steep(), x).verification.exact


# -- plans from elsewhere -----------------------------------------------------------------


def refused(small: Capture, chosen: ScalePlan) -> str:
    with pytest.raises(unitify.UnitifyError) as caught:
        check_plan(small, chosen)
    return caught.value.code


def test_plans_that_do_not_fit_are_refused(small: Capture) -> None:
    chosen = plan(small, measure(small), RULES)
    check_plan(small, chosen)
    values = dict(chosen.values)
    assert refused(small, replace(chosen, values={**values, "strange": Scale()})) == "U301"
    assert refused(small, replace(chosen, values={"x": Scale()})) == "U301"
    assert refused(small, replace(chosen, values={**values, "relu": Scale(3.0)})) == "U302"
    assert refused(small, replace(chosen, values={**values, "relu": Scale(-2.0)})) == "U302"
    assert refused(small, replace(chosen, values={**values, "relu": Scale(1.0, 0.0)})) == "U302"
    assert refused(small, replace(chosen, values={**values, "x": Scale(2.0)})) == "U302"
    assert refused(small, replace(chosen, values={**values, "b_shift": Scale(2.0)})) == "U302"
