"""Casts of what an operand deviates from the mean of its channels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conversion import parameter_scales
from torch import Tensor, nn

import unitify
from unitify.cast.mean_subtraction import on_grid
from unitify.formats.table import E4M3, FP32, quantize
from unitify.module.assembly import parts_in
from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import operand_casts
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import FP8
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()
CENTERED = dataclasses.replace(FP8, name="centered", multiple=1, center="predicted", simulate=True)


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with the statistics of ``x`` in its batch norms, and gains and biases drawn."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
            nn.init.normal_(module.bias, 2.0)
    with torch.no_grad():
        model(x)
    return model.eval()


def dense() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 48))
    x = torch.randn(64, 16)
    return trained(model, x), x


def contractions(module: unitify.UnitScaledModule) -> list[Choice]:
    return [c for c in module.casts if c.is_contraction]


def test_a_linear_layer_by_hand() -> None:
    model, x = dense()
    module = unitify.transform(model, (x,), recipe=CENTERED)
    first, last = contractions(module)
    assert not first.mean
    mean = torch.tensor(last.mean)
    plan = module.plan
    weight = model[3].weight
    own = parameter_scales(module)["3.weight"].fwd

    def rounded(t: Tensor, scale: float) -> Tensor:
        return quantize(t / scale, E4M3) * scale

    start = parameter_scales(module)["0.weight"].fwd
    hidden = F.linear(rounded(x, 1.0), rounded(model[0].weight, start), model[0].bias)
    hidden = model[2](model[1](hidden))
    scale = plan.unit("relu").fwd
    deviation = rounded(hidden - mean, scale)
    expected = F.linear(deviation, rounded(weight, own), model[3].bias) + F.linear(mean, weight)
    torch.testing.assert_close(module(x), expected)
    # Where the rectifier gives zero, nothing is rounded.
    zero = (hidden == 0).any(0)
    assert bool(zero.any())
    assert torch.equal(rounded(-mean, scale)[zero], -mean[zero])


def test_a_mean_on_the_grid() -> None:
    mean = torch.randn(200) * torch.exp2(torch.randn(200) * 4)
    held = on_grid(mean, E4M3)
    assert float(((held - mean) / mean).abs().max()) <= 2.0**-4
    assert torch.equal(on_grid(held, E4M3), held)
    assert torch.equal(on_grid(held * 2.0**-30, E4M3), held * 2.0**-30)


CONVOLUTIONS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "pointwise": lambda: (nn.Conv2d(8, 6, 1), torch.randn(4, 8, 5, 5)),
    "padded": lambda: (nn.Conv2d(8, 6, 3, padding=1), torch.randn(4, 8, 5, 6)),
    "strided": lambda: (nn.Conv2d(8, 6, (3, 2), (2, 1), (1, 2)), torch.randn(4, 8, 7, 6)),
    "dilated": lambda: (nn.Conv1d(8, 6, 3, dilation=3, padding=4), torch.randn(4, 8, 12)),
    "grouped": lambda: (nn.Conv2d(8, 8, 3, groups=8, padding=1), torch.randn(4, 8, 5, 5)),
    "volume": lambda: (nn.Conv3d(8, 4, 2, padding=1, bias=False), torch.randn(4, 8, 3, 4, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_apart_and_together_it_is_the_same(kind: str) -> None:
    """Without rounding, the sum of the two terms is the contraction, with its gradients."""
    torch.manual_seed(0)
    convolution, x = CONVOLUTIONS[kind]()
    norm = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][x.dim() - 3](8)
    model = trained(nn.Sequential(norm, nn.Sequential(nn.ReLU(), convolution)), x)
    # What comes first has no statistics in front of it; the norm states its own input's.
    model = trained(nn.Sequential(nn.Identity(), Doubled(model)), x)
    recipe = dataclasses.replace(CENTERED, forward=FP32, backward=FP32)
    module = unitify.transform(model, (x,), recipe=recipe)
    (choice,) = contractions(module)
    assert choice.mean
    torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)
    name = "1.inner.1.1.weight"
    found, true = (
        torch.autograd.grad(m(x).square().sum(), m.get_parameter(name))[0] for m in (module, model)
    )
    torch.testing.assert_close(
        found * module.plan.parameters[name].bwd,
        true,
        rtol=1e-4,
        atol=1e-4 * float(true.abs().max()),
    )


class Doubled(nn.Module):
    """Twice the input, so that the norm's input is an operation's result."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x * 2)
        return y


def test_only_statistics_that_a_model_keeps_are_known() -> None:
    """Initial statistics say nothing of the data, and a layer norm keeps none."""
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    for norm in (nn.BatchNorm1d(32), nn.LayerNorm(32)):
        with torch.no_grad():
            norm.bias += 2
        model = nn.Sequential(nn.Linear(16, 32), norm, nn.ReLU(), nn.Linear(32, 48)).eval()
        module = unitify.transform(model, (x,), recipe=CENTERED)
        assert not any(c.mean for c in contractions(module))
        measured = dataclasses.replace(CENTERED, center="measured")
        module = unitify.transform(model, (x,), recipe=measured, batches=[x])
        assert [bool(c.mean) for c in contractions(module)] == [False, True]
        if isinstance(norm, nn.LayerNorm):
            hidden = model[:3](x).mean(0)
            assert torch.equal(torch.tensor(contractions(module)[1].mean), on_grid(hidden, E4M3))


def error(module: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x) - model(x)).square().mean() / model(x).square().mean())


def test_less_noise() -> None:
    model, x = dense()
    plain = unitify.transform(model, (x,), recipe=dataclasses.replace(CENTERED, center="none"))
    module = unitify.transform(model, (x,), recipe=CENTERED)
    assert error(module, model, x) < error(plain, model, x)


def test_products_on_fp8_operands() -> None:
    """Lowered and simulated alike, up to the order of summation; the offset stays a row."""
    model, x = dense()
    lowered = unitify.transform(model, (x,), recipe=dataclasses.replace(CENTERED, simulate="auto"))
    assert {c.runs for c in contractions(lowered)} == {"fp8"}
    module = unitify.transform(model, (x,), recipe=CENTERED)
    torch.testing.assert_close(lowered(x), module(x))
    held = lowered.to_inference()
    assert torch.equal(held(x), lowered(x))
    assert not any(p.dim() > 1 for p in held.parameters())


def test_everything_else_stays_exact() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 6)
    body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1))
    model = trained(body, x)
    module = unitify.transform(model, (x,), recipe=CENTERED)
    assert contractions(module)[1].mean
    assert not unitify.verify(model, module, (x,)).findings


def test_saved_and_read_back(tmp_path: Path) -> None:
    model, x = dense()
    module = unitify.transform(model, (x,), recipe=CENTERED)
    rebuilt = unitify.rebuild(
        model, module.state_dict(), module.plan, (x,), recipe=CENTERED, casts=module.casts
    )
    assert torch.equal(rebuilt(x), module(x))
    assert rebuilt.state_dict().keys() == model.state_dict().keys()


def test_noise_is_measured() -> None:
    model, x = dense()
    module = unitify.transform(model, (x,), recipe=CENTERED)
    casts = operand_casts(*parts_in(module), RULES)
    measured = measured_noise(module.capture, casts, [x])["linear_1"].sqnr
    assert measured == pytest.approx(-10 * math.log10(error(module, model, x)), abs=0.1)
