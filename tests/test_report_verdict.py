"""The report's verdict: the findings of ``check``, but for gradients that are rounding alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.check.asserting import check_model
from unitify.formats.losses import NOTABLE
from unitify.recipe.recipe import RECIPES
from unitify.report.model_report import ModelReport
from unitify.report.summary import losses


class Attention(nn.Module):
    """The bias of the keys moves all inputs of the softmax alike."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        return scores.softmax(-1) @ x * 1e-6


def test_a_gradient_of_rounding_is_marked_and_no_finding() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 16, 16)
    model = Attention()
    numerics = unitify.transform(model, (x,), recipe="fp8").report([(x,)]).numerics
    noise = [v.parameter for v in numerics.values if v.backward.is_rounding]
    assert noise == ["key.bias"]
    lost = {(held.value.parameter, held.direction) for held in losses(numerics, "original")}
    assert ("key.bias", "forward") in lost
    assert ("key.bias", "backward") not in lost
    checked = numerics.checked["original"]
    note = "not judged, because zero but for rounding: the gradient of key.bias"
    assert note in checked.outcome.notes
    expected = check_model(model, x, recipe="fp8")
    assert note in expected.notes
    keys = [{finding.key for finding in one.findings} for one in (checked.outcome, expected)]
    assert keys[0] == keys[1]
    left = numerics.checked["transformed"].outcome.findings
    assert len(left) < len(checked.outcome.findings)


class Loud(nn.Module):
    """Values grow layer by layer, and so does the gradient on its way to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=10.0)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_the_verdict_and_the_tile_agree() -> None:
    """A true weight is rounded at the scale of its cast, and the gradient of an input as it is."""
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    numerics = unitify.transform(Loud(), (x,), recipe="fp16").report([(x,)]).numerics
    (left,) = numerics.checked["transformed"].outcome.findings
    assert (left.name, left.direction) == ("x", "backward")
    assert "unitify.transform" not in left.fix
    assert "unitify.transform" in numerics.checked["original"].outcome.findings[0].fix
    (lost,) = (held for held in losses(numerics, "transformed") if held.worst > NOTABLE)
    assert (lost.value.name, lost.direction) == ("x", "backward")
    assert "0.weight" in str(ModelReport(numerics))


@pytest.mark.parametrize("recipe", [*RECIPES, "fp8,kv_cache=e4m3", "fp8,center=measured"])
def test_a_module_of_every_recipe_has_a_report(recipe: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        module = unitify.transform(nn.Linear(32, 32), (torch.randn(4, 32),), recipe=recipe)
    assert module.report().numerics.recipe.name == module.recipe.name
