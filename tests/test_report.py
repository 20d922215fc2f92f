"""The report of a model: its values are what capture, analysis, measurement and plan say."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from islands import HoldsFunction
from torch import Tensor, nn

import unitify
from unitify.diagnostics import UnitifyError
from unitify.explain import explain_value
from unitify.formats.losses import loss
from unitify.formats.magnitudes import magnitudes_of
from unitify.formats.table import E4M3, E5M2
from unitify.report.model_report import ModelReport
from unitify.report.numerics import Numerics, Value
from unitify.report.of_module import report


class Residual(nn.Module):
    """A branch whose names a page must not trust, a sum, and an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.ModuleDict(
            {"<img src=x onerror=boom()>": nn.Linear(16, 32), "</script>": nn.Linear(32, 16)}
        )
        self.register_parameter("<b>gain", nn.Parameter(torch.full((16,), 2.0**-9)))

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.branch.values()
        y = x + down(nn.functional.gelu(up(x)))
        return torch.special.bessel_j0(y) * getattr(self, "<b>gain")


def batch() -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(3))


@functools.cache
def residual() -> tuple[nn.Module, unitify.UnitScaledModule]:
    torch.manual_seed(0)
    model = Residual()
    return model, unitify.transform(model, (batch(),), recipe="fp8")


@functools.cache
def residual_report(is_measured: bool = True) -> ModelReport:
    return residual()[1].report([(batch(),)] if is_measured else ())


def by_name(numerics: Numerics) -> dict[str, Value]:
    return {value.name: value for value in numerics.values}


def many(values: int) -> Numerics:
    """The numerics of a model that holds the residual block again and again."""
    numerics = residual_report().numerics
    blocks = -(-values // len(numerics.values))

    def renamed(value: Value, block: int) -> Value:
        module = f"layers.{block}.{value.module}".rstrip(".")
        origin = replace(value.origin, module=module)
        return replace(value, name=f"{value.name}_{block}", origin=origin)

    held = [renamed(v, block) for block in range(blocks) for v in numerics.values]
    return replace(numerics, values=tuple(held[:values]))


def test_values_are_those_of_the_pipeline() -> None:
    model, module = residual()
    found = by_name(residual_report().numerics)
    assert found.keys() == {n for n in module.plan.values if n in found}
    predicted = unitify.estimate(model, (batch(),), scales="analysis")
    measured = unitify.estimate(model, (batch(),), scales="measured")
    assert found.keys() == predicted.keys()
    for name, value in found.items():
        scale = module.plan.wanted(name)
        assert (value.forward.exponent, value.backward.exponent) == scale.exponents
        assert value.forward.predicted == predicted[name].forward
        assert value.backward.predicted == predicted[name].backward
        assert value.forward.measured == pytest.approx(measured[name].forward)
        assert value.backward.measured == pytest.approx(measured[name].backward)
        assert value.forward.stored == pytest.approx(value.forward.rms / scale.fwd)


def test_magnitudes_and_losses_are_of_the_true_and_of_the_stored_value() -> None:
    model, module = residual()
    found = by_name(residual_report().numerics)
    up = model.branch["<img src=x onerror=boom()>"]
    true = up(batch()).detach()
    value = found["linear"]
    assert value.forward.magnitudes == magnitudes_of(true)
    stored = magnitudes_of(true / module.plan.wanted("linear").fwd)
    assert value.forward.losses["original"]["e4m3"] == loss(E4M3, magnitudes_of(true))
    assert value.forward.losses["transformed"]["e4m3"] == loss(E4M3, stored)


def test_without_batches_the_inputs_of_the_recording_are_measured() -> None:
    measured, given = residual_report(False).numerics, residual_report().numerics
    assert measured.values == given.values
    assert "the recorded inputs" in measured.notes[-1]


def test_without_data_a_normal_distribution_is_assumed() -> None:
    with torch.device("meta"):
        model = Residual()
    module = unitify.transform(model, (batch().to("meta"),), recipe="fp8", verify=False)
    assert module.scales == "analysis"
    numerics = module.report().numerics
    assert numerics.batches == 0
    assert any(value.forward.predicted for value in numerics.values)
    for value in numerics.values:
        assert value.forward.measured is value.backward.measured is None
        assert value.forward.magnitudes is None
        if value.forward.predicted:
            expected = loss(E5M2, value.forward.predicted)
            assert value.forward.losses["original"]["e5m2"] == expected


def test_figures_that_are_far_apart_are_said() -> None:
    """Half of the weights cancel the other half, which moments do not see."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[0].weight[4:] = -model[0].weight[:4]
        model[1].weight[:, 4:] = model[1].weight[:, :4] * (1 + 1e-4)
    note = unitify.transform(model, (torch.randn(32, 8),)).report().numerics.notes[-1]
    assert "differ by more than 4 octaves in" in note
    assert "linear_1" in note
    text = explain_value("linear_1", model, (torch.randn(32, 8),))
    assert "more than 4 octaves off" in text


def test_a_parameter_stands_before_its_first_use() -> None:
    names = [value.parameter or value.name for value in residual_report().numerics.values]
    assert names[:4] == [
        "x",
        "branch.<img src=x onerror=boom()>.weight",
        "branch.<img src=x onerror=boom()>.bias",
        "linear",
    ]


def test_where_values_come_from() -> None:
    found = by_name(residual_report().numerics)
    origin = found["gelu"].origin
    assert Path(origin.file) == Path(__file__)
    assert "gelu(up(x))" in origin.excerpt[origin.line - origin.first]
    assert found["linear"].module == "branch.<img src=x onerror=boom()>"
    assert found["linear"].origin.kind == "Linear"
    assert found["add"].module == ""


def test_a_parameter_has_the_line_that_creates_it() -> None:
    numerics = residual_report().numerics
    lines = {v.parameter: v.origin for v in numerics.values if v.parameter}
    for origin in lines.values():
        assert Path(origin.file) == Path(__file__)
    gain = lines["<b>gain"]
    assert "register_parameter" in gain.excerpt[gain.line - gain.first]


def test_what_is_restored_and_cast() -> None:
    numerics = residual_report().numerics
    found = by_name(numerics)
    restored = {name: value.restored for name, value in found.items() if value.restored}
    assert restored.pop("special_bessel_j0") == "no rule"
    assert restored == {"gelu": "law"}
    casts = {n: (v.forward.cast, v.backward.cast) for n, v in found.items()}
    assert casts["linear"] == ("", "e5m2")
    assert casts["gelu"] == ("e4m3", "")
    assert casts["x"] == ("e4m3", "")
    weight = next(n for n, v in found.items() if v.parameter.endswith("onerror=boom()>.weight"))
    assert casts[weight] == ("e4m3", "")
    assert casts["add"] == ("", "")
    assert "aten.gelu.default" in numerics.rules
    assert "aten.special_bessel_j0.default" not in numerics.rules


def test_signal_to_noise_of_both_graphs() -> None:
    found = by_name(residual_report().numerics)
    assert found["gelu"].sqnr
    assert found["x"].sqnr == {}
    held = found["linear"].sqnr
    # Two normal operands in E4M3 leave 28.5 dB; the seed fixes how these differ from that.
    assert {graph: round(r, 1) for graph, r in held.items()} == {
        "original": 29.8,
        "transformed": 29.8,
    }
    # Without batches the example is run, which here is the same.
    assert by_name(residual_report(False).numerics)["linear"].sqnr == held


def test_no_noise_without_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 16))
    module = unitify.transform(model, (torch.randn(4, 16, device="meta"),), recipe="fp8")
    numerics = module.report().numerics
    assert all(v.sqnr == {} for v in numerics.values)
    assert "weights hold no data" in numerics.notes[-1]


def test_classes_hold_every_value_once_and_rescales_join_them() -> None:
    torch.manual_seed(0)
    module = unitify.transform(Residual(), (batch(),), recipe="fp16")
    numerics, plan = module.report().numerics, module.plan
    members = [name for c in numerics.classes for name in c.values]
    assert sorted(members) == sorted(plan.values)
    owner = {name: c for c in numerics.classes for name in c.values}
    for name, scale in plan.values.items():
        assert (owner[name].forward, owner[name].backward) == scale.exponents
    assert numerics.crossings
    for crossing in numerics.crossings:
        assert max(crossing.source, crossing.target) < len(numerics.classes)


def test_a_trained_module_is_reported_as_it_is_now() -> None:
    torch.manual_seed(0)
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (batch(),), inplace=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8.0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    weight = module.original_state_dict()["0.weight"]
    value = by_name(module.report([(batch(),)]).numerics)["p_0_weight"]
    rms = weight.double().square().mean().sqrt().item()
    assert value.forward.measured == pytest.approx(rms)
    assert value.forward.predicted == pytest.approx(rms)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


class Recurrent(nn.Module):
    """An operation with several results, whose contractions are inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gates(x)[0]


def test_one_operation_with_several_results() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    numerics = unitify.transform(Recurrent(), (x,), recipe="fp8").report([(x,)]).numerics
    contraction = next(c for c in numerics.choices if c.is_contraction and c.is_cast)
    results = [v for v in numerics.values if v.contraction == contraction.value]
    assert results
    assert contraction.value not in by_name(numerics)
    assert any(v.sqnr for v in results)
    assert {v.backward.cast for v in results} == {"e5m2"}
    weights = [v.forward.cast for v in numerics.values if ".weight" in v.parameter]
    assert weights == ["e4m3", "e4m3"]


def test_islands_have_values_by_part() -> None:
    torch.manual_seed(0)
    with pytest.warns(unitify.UnitifyWarning, match="U109"):
        module = unitify.transform(HoldsFunction(), (torch.randn(4, 8),))
    numerics = module.report([(torch.randn(4, 8),)]).numerics
    assert {v.name for v in numerics.values} <= module.plan.values.keys()
    assert all("/" in v.name for v in numerics.values)
    assert any(v.forward.measured for v in numerics.values)
    assert any(d.code == "U109" for d in numerics.findings)


def test_a_recipe_whose_noise_is_not_shown_says_so() -> None:
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (batch(),), recipe="fp16")
    numerics = module.report().numerics
    assert not any(v.sqnr for v in numerics.values)
    assert any("signal to noise is not shown for fp16" in note for note in numerics.notes)
    assert by_name(numerics)["linear"].forward.cast == "fp16"


class Reporting(nn.Module):
    """A model with names of its own where a module has its report."""

    def __init__(self) -> None:
        super().__init__()
        self.report = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.report(x)


def test_a_model_keeps_a_child_of_that_name() -> None:
    model = Reporting()
    module = unitify.transform(model, (batch(),))
    assert torch.equal(module(batch()), model(batch()))
    assert isinstance(module.report, nn.Module)
    assert by_name(report(module).numerics).keys() == module.plan.values.keys()


def test_a_scheme_says_which_model_is_the_original() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    numerics = unitify.transform(model, (batch(),), scheme="unit").report().numerics
    assert "the true model of the scheme" in numerics.notes[0]


def test_codes_in_place_of_weights_change_no_value() -> None:
    module = residual()[1].to_inference()
    found, expected = module.report().numerics, residual_report(False).numerics
    assert found.parameters == expected.parameters
    assert found.values == expected.values


def test_without_a_recipe_it_shows_what_fp8_would_do() -> None:
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (batch(),))
    numerics = module.report().numerics
    assert (numerics.recipe.name, numerics.is_applied) == ("fp8", False)
    assert by_name(numerics)["linear"].backward.cast == "e5m2"


def test_the_meta_device_holds_nothing_to_measure() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        x = torch.randn(4, 64)
    numerics = unitify.transform(model, (x,)).report([(x,)]).numerics
    assert numerics.batches == 0
    assert "meta device" in numerics.notes[0]
    assert all(v.forward.predicted is not None for v in numerics.values)


def test_text_names_what_matters() -> None:
    text = str(residual_report())
    assert "Residual" in text
    assert "without a rule: aten.special_bessel_j0.default × 1" in text
    assert "gradients at unit RMS" in text
    assert max(map(len, text.splitlines())) <= 100


def trained(path: Path, steps: int = 3) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    module = unitify.transform(nn.Sequential(nn.Linear(16, 16)), (batch(),), recipe="fp8")
    with unitify.monitor(module, every=1, path=path):
        for _ in range(steps):
            module(batch()).square().sum().backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(2.0)
    return module


def test_drift_is_what_the_monitor_wrote(tmp_path: Path) -> None:
    module = trained(tmp_path / "drift.jsonl")
    held = module.report(drift=tmp_path / "drift.jsonl").as_json()["drift"]
    assert held["steps"] == [0, 1, 2]
    weight = held["rms"]["forward"]["p_0_weight"]
    assert weight[2] / weight[0] == pytest.approx(4, rel=1e-3)
    assert held["underflow"]["forward"].keys() >= {"p_0_weight"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        ("", "no record"),
        ("{\n", "line 1"),
        ('{"step": 1}\n', "line 1"),
        ("[]\n", "line 1"),
    ],
)
def test_a_file_of_readings_that_is_none(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "drift.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnitifyError, match=problem) as caught:
        residual()[1].report(drift=path)
    assert caught.value.code == "U609"


def test_unit_shares_count_what_has_an_rms() -> None:
    numerics = residual_report().numerics
    _, module = residual()
    stored = [
        v.forward.rms / module.plan.wanted(v.name).fwd
        for v in numerics.values
        if v.forward.rms and v.kind != "parameter"
    ]
    weights = [v for v in numerics.values if v.is_true_weight]
    assert {v.kind for v in weights} == {"parameter"}
    assert numerics.true_weights("forward") == len([v for v in weights if v.forward.rms]) > 0
    expected = sum(0.5 <= rms <= 2 for rms in stored), len(stored)
    assert numerics.unit_share("forward", "transformed") == expected
    assert not math.isnan(stored[0])
