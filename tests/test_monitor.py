"""``monitor``: what it reads is what is there, and reading changes nothing."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion import parameter_scales
from islands import HoldsFunction
from torch import Tensor, nn
from training import fresh_pair, scaled_at_random, tokens

import unitify
from unitify.diagnostics import UnitifyError
from unitify.formats.table import E4M3, E5M2
from unitify.measure.captured import measure


class Recurrent(nn.Module):
    """Operations with several results, one of them dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.lstm(x)[0].chunk(2, -1)
        return self.head(left * right.max(-1, keepdim=True).values).square().mean()


@functools.cache
def _linears(recipe: str | None) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 16))
    return unitify.transform(model, (torch.randn(32, 16),), recipe=recipe)


def linears(recipe: str | None = "fp8") -> unitify.UnitScaledModule:
    return copy.deepcopy(_linears(recipe))


def step(module: Any, seed: int = 0) -> list[Tensor]:
    """One forward and backward pass. The result and all gradients."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = None
    result = module(torch.randn(32, 16))
    result.square().sum().backward()
    return [result.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["tied", "recurrent"])
def test_readings_are_true_values_in_their_units(name: str) -> None:
    torch.manual_seed(0)
    x = tokens(3) if name == "tied" else torch.randn(2, 5, 6)
    module = fresh_pair()[1] if name == "tied" else scaled_at_random(Recurrent(), x)
    true = measure(module.capture, [[x]])
    with unitify.monitor(module, every=1) as monitor:
        module(x).backward()
        record = monitor.latest
    assert record is not None
    for value, scale in module.plan.values.items():
        rms = true.get(value, unitify.Rms())
        if rms.forward is not None:
            assert record.forward[value].rms == rms.forward / scale.fwd
        # Inputs are leaves in a measurement alone.
        if rms.backward is not None and value in record.backward:
            assert record.backward[value].rms == rms.backward / scale.bwd
    asked = {v for v, rms in true.items() if rms.backward is not None and v != "x"}
    assert record.backward.keys() == asked


@pytest.mark.parametrize("recipe", [None, "fp8"])
def test_values_that_stay_true_are_read_in_the_unit_of_their_casts(recipe: str | None) -> None:
    read = []
    for placement in ("everywhere", "casts"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        module = unitify.transform(
            model, (torch.randn(32, 16),), recipe=recipe, placement=placement, loss_fn=norm
        )
        with unitify.monitor(module) as monitor:
            step(module)
        assert monitor.latest is not None
        read.append((monitor.latest.forward, monitor.latest.backward))
    assert read[0] == read[1]


def norm(result: Tensor) -> Tensor:
    return result.square().sum()


def test_shares_are_those_of_the_format() -> None:
    module = linears()
    weight, unit = module.get_parameter("0.weight"), parameter_scales(module)["0.weight"].fwd
    with torch.no_grad():
        weight[0, :4] = torch.tensor([1e4, -449.0, 448.0, 2.0**-7]) * unit
        weight[1] = 0.0
    with unitify.monitor(module, every=1) as monitor:
        step(module)
        record = monitor.latest
    assert record is not None
    value = next(v for v in record.forward if "0_weight" in v)
    size = weight.detach().abs() / unit
    present = int((size > 0).sum())
    assert record.forward[value].saturation == pytest.approx(2 / present)
    small = (size > 0) & (size < E4M3.smallest_normal)
    assert record.forward[value].underflow == pytest.approx(
        int(small.sum()) / int((size > 0).sum())
    )
    assert {v for v, r in record.forward.items() if r.underflow is not None} == {
        "p_0_weight", "p_3_weight", "input_1", "dropout",
    }  # fmt: skip
    assert {v for v, r in record.backward.items() if r.underflow is not None} == {
        "linear", "linear_1",
    }  # fmt: skip


def test_shares_in_a_format_that_is_asked_for() -> None:
    module = linears(recipe=None)
    with unitify.monitor(module, every=1, format="e5m2") as monitor:
        step(module)
        record = monitor.latest
    assert record is not None
    readings = [*record.forward.values(), *record.backward.values()]
    assert all(r.underflow is not None and r.saturation == 0.0 for r in readings)
    with torch.no_grad():
        module.get_parameter("3.weight").mul_(2.0 * E5M2.largest)
    with unitify.monitor(module, every=1, format=E5M2) as monitor:
        step(module)
        assert monitor.latest is not None
        assert (monitor.latest.forward["p_3_weight"].saturation or 0) > 0.1


def test_reading_changes_nothing() -> None:
    module = linears()
    expected = [step(copy.deepcopy(module), seed) for seed in range(4)]
    with unitify.monitor(module, every=2) as monitor:
        for seed in range(4):
            found = step(module, seed)
            assert all(torch.equal(a, b) for a, b in zip(found, expected[seed], strict=True))
        assert monitor.latest is not None
        assert monitor.latest.step == 2
    assert not module._forward_pre_hooks
    assert not module._forward_hooks
    assert all(p._backward_hooks is None or not p._backward_hooks for p in module.parameters())


def test_a_compiled_module() -> None:
    module = linears()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with unitify.monitor(compiled, every=3) as monitor:
        for seed in range(4):
            found = step(compiled, seed)
            expected = step(copy.deepcopy(module), seed)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert monitor.latest is not None
        assert monitor.latest.step == 3
        assert monitor.latest.backward


class Noted:
    """What stands for a ``SummaryWriter``."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag, global_step] = scalar_value


def test_writer_and_file(tmp_path: Path) -> None:
    module, noted, path = linears(), Noted(), tmp_path / "scales.jsonl"
    with unitify.monitor(module, noted, every=2, path=path) as monitor:
        for seed in range(3):
            step(module, seed)
            with torch.no_grad():
                module(torch.zeros(32, 16))
        last = monitor.latest
    with unitify.monitor(module, path=path):
        step(module)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 0]
    assert last is not None
    assert noted.scalars.keys() == {(tag, at) for tag, _ in last.scalars() for at in (0, 2)}
    for tag, number in last.scalars():
        assert noted.scalars[tag, 2] == number
    assert lines[1]["backward"]["linear"] == {
        "rms": last.backward["linear"].rms,
        "underflow": last.backward["linear"].underflow,
        "saturation": last.backward["linear"].saturation,
    }
    assert lines[1]["outside"] == last.outside


def test_what_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    module, path = linears(), tmp_path / "scales.jsonl"
    with unitify.monitor(module, every=1, path=path) as monitor:
        module(torch.full((32, 16), torch.inf))
    assert monitor.latest is not None
    assert monitor.latest.forward["input_1"].rms == torch.inf

    def refused(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(path.read_text("utf-8"), parse_constant=refused)
    assert line["forward"]["input_1"]["rms"] is None


def test_a_call_without_backward_pass_is_a_record_of_values() -> None:
    module = linears()
    with unitify.monitor(module, every=1) as monitor:
        module(torch.zeros(32, 16))
        assert monitor.latest is None
        step(module)
        assert monitor.latest is not None
        assert monitor.latest.step == 1
        module(torch.zeros(32, 16))
    assert monitor.latest.step == 2
    assert not monitor.latest.backward


def test_a_call_that_fails_leaves_the_module_as_it_was() -> None:
    module = linears()
    with unitify.monitor(module, every=1) as monitor:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            module(torch.zeros(32, 17))
        step(module)
        assert monitor.latest is not None
        assert monitor.latest.backward


def test_drift_shows() -> None:
    module = linears()
    with unitify.monitor(module, every=1) as monitor:
        step(module)
        assert monitor.latest is not None
        before = monitor.latest
        with torch.no_grad():
            module.get_parameter("0.weight").mul_(64.0)
        step(module)
        after = monitor.latest
    assert after.outside > before.outside
    assert after.forward["linear"].rms > 16 * before.forward["linear"].rms


@pytest.mark.parametrize("recipe", [None, "fp8,multiple=1", "fp16"])
def test_islands_and_modules_around(recipe: str | None) -> None:
    """Every island runs its graph, whatever those beside it were given."""
    torch.manual_seed(0)
    inner = unitify.transform(HoldsFunction(), (torch.randn(4, 8),), recipe=recipe)
    outer = nn.Sequential(nn.Linear(8, 8), inner)
    with unitify.monitor(outer, every=1) as monitor:
        outer(torch.randn(4, 8)).sum().backward()
    assert monitor.latest is not None
    assert {v.split("/")[0] for v in monitor.latest.backward} == {
        "before", "inside.linear", "after",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("U001", {"every": 0}),
        ("U001", {"writer": object()}),
        ("U001", {"format": "e9m9"}),
        ("U606", {"path": "nowhere/at/all.jsonl"}),
    ],
)
def test_what_is_refused(code: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UnitifyError) as caught:
        unitify.monitor(linears(), **arguments)
    assert caught.value.code == code


def test_a_module_that_was_not_transformed() -> None:
    with pytest.raises(UnitifyError) as caught:
        unitify.monitor(nn.Linear(2, 2))
    assert caught.value.code == "U009"
