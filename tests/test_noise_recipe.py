"""Recipes that choose by what they see: headroom, and how much noise an output may carry."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conversion import parameter_scales
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import unitify
from unitify.cast.distributions import measured_distributions, weight_distributions
from unitify.checkpoint import folder
from unitify.diagnostics import UnitifyError
from unitify.formats.magnitudes import STEPS, Magnitudes, magnitudes_of
from unitify.formats.signal_to_noise import best_scale, snr
from unitify.formats.table import E4M3, E5M2, quantize
from unitify.module.assembly import parts_in
from unitify.recipe.choices import flop_share
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()


class Deep(nn.Module):
    """Layers of which some add more noise to the output than others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.wide, self.last = nn.Linear(64, 256), nn.Linear(256, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.3 * torch.tanh(layer(x))
        y: Tensor = self.last(F.gelu(self.wide(x)))
        return y


def deep() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Deep(), torch.randn(256, 64)


def with_outliers() -> Tensor:
    """Unit normal but for a few elements far beyond E4M3's 448."""
    torch.manual_seed(0)
    x = torch.randn(512, 32)
    x[::64, 0] = 4000.0
    return x


def sqnr(found: Tensor, true: Tensor) -> float:
    return 10 * math.log10(float(true.square().sum() / (found - true).square().sum()))


def test_measured_headroom_spares_outliers() -> None:
    x = with_outliers()
    model = nn.Linear(32, 16, bias=False)
    true = model(x)
    found = {}
    for headroom in ("none", "predicted", "measured"):
        recipe = {"base": "fp8", "headroom": headroom}
        # Scales are planned for an input without outliers.
        module = unitify.transform(model, (x / 64,), recipe=recipe, scales="analysis", batches=[x])
        (choice,) = (c for c in module.casts if c.is_contraction)
        found[headroom] = sqnr(module(x), true), tuple(c.exponent for c in choice.casts)
    assert found["measured"][1][0] >= 4
    assert found["measured"][0] > found["none"][0] + 10
    assert found["predicted"][1][1:] == (0, 0)


def test_headroom_is_where_signal_to_noise_is_best() -> None:
    x = with_outliers()
    model = nn.Linear(32, 16, bias=False)
    recipe = {"base": "fp8", "headroom": "measured", "simulate": True}
    module = unitify.transform(model, (x,), recipe=recipe, scales="measured", batches=[x])
    (choice,) = (c for c in module.casts if c.is_contraction)
    of_x, of_weight, _ = (cast.exponent for cast in choice.casts)
    histogram = magnitudes_of(x)
    (given,) = [n.name for n in module.capture.graph.nodes if n.op == "placeholder"]
    of_x += module.plan.units[given].exponents[0]
    best = best_scale(E4M3, histogram.rms, histogram)
    found, expected = (snr(E4M3, histogram.rms / s, histogram) for s in (2.0**of_x, best))
    assert found > expected - 0.3
    scale = parameter_scales(module)["weight"].fwd
    scale *= 2.0**of_weight
    rounded = quantize(module.get_parameter("weight").detach() / scale, E4M3) * scale
    expected = F.linear(quantize(x / 2.0**of_x, E4M3) * 2.0**of_x, rounded)
    assert torch.equal(module(x), expected)


def test_distributions_are_those_of_the_batches() -> None:
    model, x = deep()
    module = unitify.transform(model, (x,), recipe="fp8")
    batches = [[x], [4 * x]]
    found = measured_distributions(*parts_in(module), batches)
    histogram = found["linear", "input", 0]
    both = torch.cat([x, 4 * x]).double()
    assert isinstance(histogram, Magnitudes)
    assert histogram.total + histogram.zeros == both.numel()
    # Half a bin is 1/32 of an octave.
    assert histogram.rms == pytest.approx(float(both.square().mean().sqrt()), rel=0.5 / STEPS)
    assert ("linear", "", 0) in found
    weights = weight_distributions(*parts_in(module), RULES)
    assert weights["linear", "weight", 0] == magnitudes_of(model.layers[0].weight)
    assert {argument for _, argument, _ in weights} == {"weight"}


@pytest.mark.parametrize("simulate", [True, "auto"])
def test_headroom_runs_on_codes(simulate: str | bool) -> None:
    x = with_outliers()
    model = nn.Linear(32, 16, bias=False)
    recipe = {"base": "fp8", "headroom": "measured", "simulate": simulate}
    module = unitify.transform(model, (x,), recipe=recipe, scales="measured", batches=[x])
    twin = unitify.transform(
        model, (x,), recipe={**recipe, "simulate": True}, scales="measured", batches=[x]
    )
    torch.testing.assert_close(module(x), twin(x))
    assert torch.equal(module.to_inference()(x), module(x))


def auto(bound: float) -> unitify.UnitScaledModule:
    model, x = deep()
    return unitify.transform(model, (x,), recipe=f"fp8-auto,min_sqnr={bound}", scales="measured")


def test_a_tighter_bound_leaves_more_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is predicted without data varies by √(2 / directions) of the noise, 6 % over 600."""
    directions = 600
    monkeypatch.setattr("unitify.noise.sensitivity.DIRECTIONS", directions)
    four_errors = 10 * math.log10(1 + 4 * math.sqrt(2 / directions))
    model, x = deep()
    true = model(x)
    shares, measured = [], []
    for bound in (10, 30, 36, 45):
        module = auto(bound)
        assert not module.diagnostics
        shares.append(flop_share(module.casts))
        measured.append(sqnr(module(x), true))
        assert measured[-1] > bound - four_errors
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1.0
    assert 0.0 < shares[2] < 1.0
    assert measured == sorted(measured)


def test_every_contraction_knows_its_noise() -> None:
    choices = [c for c in auto(36).casts if c.is_contraction]
    assert all(c.noise > 0 for c in choices)
    left = {c.value for c in choices if c.forward == "bf16"}
    assert left
    assert all("36 dB" in c.reason for c in choices if c.value in left)
    assert {c.forward for c in choices} == {"bf16", "e4m3"}


def test_it_survives_the_disk(tmp_path: Path) -> None:
    module = auto(36)
    _, x = deep()
    folder.write(tmp_path / "out", module, {})
    again = unitify.load(tmp_path / "out", Deep(), (x,))
    assert again.casts == module.casts
    assert torch.equal(again(x), module(x))
    given = module.state_dict(), module.plan, (x,)
    rebuilt = unitify.rebuild(Deep(), *given, recipe=module.recipe, casts=module.casts)
    assert torch.equal(rebuilt(x), module(x))
    with pytest.raises(UnitifyError, match="U402"):
        unitify.rebuild(Deep(), *given, recipe="fp8-auto")


def test_in_place_it_chooses_the_same() -> None:
    """Noise is predicted from true weights, also where the module takes them over."""
    model, x = deep()
    expected = unitify.transform(model, (x,), recipe="fp8-auto,min_sqnr=36")
    module = unitify.transform(
        copy.deepcopy(model), (x,), recipe="fp8-auto,min_sqnr=36", inplace=True
    )
    assert module.casts == expected.casts
    assert torch.equal(module(x), expected(x))


def test_gradients_have_headroom_of_their_own() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(32, 16, bias=False), torch.randn(64, 32)
    gradient = torch.randn(64, 16)
    gradient[0, 0] = 1e7
    recipe = {"base": "fp8", "headroom": "measured", "simulate": True}
    module = unitify.transform(
        model, (x,), recipe=recipe, scales="measured", loss_fn=lambda y: (y * gradient).sum()
    )
    (choice,) = (c for c in module.casts if c.is_contraction)
    module(x).backward(gradient)
    scale = module.plan.unit("linear").bwd * 2.0 ** choice.casts[2].exponent
    arriving = quantize(gradient / scale, E5M2) * scale
    weight = module.get_parameter("weight")
    found = weight.grad * module.plan.parameters["weight"].bwd
    of_x = 2.0 ** choice.casts[0].exponent
    assert torch.equal(found, arriving.t() @ (quantize(x / of_x, E4M3) * of_x))


class Inside(nn.Module):
    """A recurrent layer on what is no input of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.recurrent(x * 1.0)[0]
        return output


@pytest.mark.parametrize(
    ("kind", "headroom"),
    [(nn.LSTM, "predicted"), (nn.LSTM, "measured"), (nn.Linear, "predicted"), (Inside, "measured")],
)
def test_small_elements_that_count_are_kept(kind: type[nn.Module], headroom: str) -> None:
    """One channel holds all of the power, and what is made of the input comes from the others."""
    torch.manual_seed(0)
    model = kind() if kind is Inside else kind(16, 32)
    x = torch.randn(8, 4, 16) * 2.0**-12
    x[..., 0] = 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "hh" not in name:
                weight[:, 0] = 0.0
                weight[:, 1:] *= 2.0**10
    found = {}
    for asked in ("none", headroom):
        module = unitify.transform(model, (x,), recipe={"base": "fp8", "headroom": asked})
        outputs = [m(x) for m in (module, model)]
        first = [y if isinstance(y, Tensor) else y[0] for y in outputs]
        found[asked] = sqnr(*first)
    assert found[headroom] > found["none"] + 10


@pytest.mark.parametrize("x", [torch.zeros(4, 32), torch.ones(4, 32)])
def test_an_input_that_tells_nothing_is_cast_as_it_is(x: Tensor) -> None:
    recipe = {"base": "fp8", "headroom": "predicted"}
    module = unitify.transform(nn.Linear(32, 16), (x,), recipe=recipe)
    (choice,) = (c for c in module.casts if c.is_contraction)
    assert abs(choice.casts[0].exponent) <= 1


@pytest.mark.parametrize("recipe", ["fp8-ptq", "fp8,headroom=measured,center=measured"])
def test_scales_are_searched_in_few_runs(recipe: str) -> None:
    """Beyond what the casts of fp8 take: ten forward passes of the model at most."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16),
    )  # fmt: skip
    x = torch.randn(4, 16, 24, 24)
    model(x)
    model.eval()

    def spent(recipe: str) -> int:
        counter = FlopCounterMode(display=False)

        def listen(stage: str, _made: object) -> None:
            if stage == "rewrite":
                counter.__enter__()
            elif stage == "cast":
                counter.__exit__(None, None, None)

        unitify.transform(model, (x,), recipe=recipe, verify=False, on_stage=listen)
        return int(counter.get_total_flops())

    with FlopCounterMode(display=False) as once:
        model(x)
    assert 1 < (spent(recipe) - spent("fp8")) / once.get_total_flops() <= 10


@pytest.mark.parametrize("number", [0.0, math.inf, math.nan], ids=str)
def test_weights_from_which_nothing_can_be_chosen(number: float) -> None:
    """Scales stay those of the plan, and a bound that was not checked is told of."""
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
    with torch.no_grad():
        model[2].weight.fill_(number)
        model[2].bias.zero_()
    x = torch.randn(4, 16)
    for recipe in ("fp8-ptq", "fp8,headroom=measured"):
        assert sum(c.is_cast for c in unitify.transform(model, (x,), recipe=recipe).casts) == 2
    with pytest.warns(
        unitify.UnitifyWarning, match="U406 .* was not checked: every output is zero"
    ):
        unitify.transform(model, (x,), recipe="fp8-auto")
