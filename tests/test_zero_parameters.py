"""Parameters that are zero at first, or gains next to zero: casts hold what they grow to."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.capture.source import Repository
from unitify.check.checking import check
from unitify.check.plan_faults import Comparison
from unitify.check.settings import settings_from
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.recipe.reader import read_recipe
from unitify.rulebook.rule_table import load_rules


def zero_head() -> nn.Module:
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
    nn.init.zeros_(model[2].weight)
    return model


class LowRank(nn.Module):
    """A frozen layer and the two factors of a change, of which the second is zero (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(32, 16).requires_grad_(False)
        self.first, self.second = nn.Linear(32, 4, bias=False), nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.second(self.first(x))


class Branch(nn.Module):
    """A residual branch behind a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)
        )
        self.gain = nn.Parameter(torch.full((32,), gain))
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.gain * self.inner(x))


MODELS = {
    "head": zero_head, "low rank": LowRank, "zero gain": lambda: Branch(0.0),
    "small gain": lambda: Branch(1e-6),
}  # fmt: skip


@pytest.mark.parametrize("recipe", ["fp8", "fp16", "nvfp4"])
@pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)
def test_gradients_are_as_good_as_with_dynamic_scales(
    made: Callable[[], nn.Module], recipe: str
) -> None:
    """From the first steps on: of every weight, beside casts that find their scales at run time."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 32), torch.randint(0, 16, (64,))
    model = made()
    module = unitify.transform(model, x, recipe=recipe)
    dynamic = unitify.transform(model, x, recipe=f"{recipe},scaling=amax")
    assert "U209" in {d.code for d in module.diagnostics}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(20):
        gradients_of(model, x, y)
        optimizer.step()
        for one in (module, dynamic):
            one.load_state_dict(model.state_dict())
        expected = gradients_of(model, x, y)
        own, other = gradients_of(module, x, y), gradients_of(dynamic, x, y)
        for name in expected:
            if name.endswith("weight"):
                errors = [distance(found[name], expected[name]) for found in (own, other)]
                assert errors[0] < 2 * errors[1] + 2.0**-9


def gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    named = model.named_parameters()
    return {n: p.grad.detach().clone() for n, p in named if p.grad is not None}


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_zero_biases_need_no_second_run() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.bias)
    module = unitify.transform(model, torch.randn(8, 32), recipe="fp8")
    assert not module.diagnostics


def test_figures_far_from_them_are_measured() -> None:
    """The second run counts only where it tells more than the first."""
    torch.manual_seed(0)
    model, x = zero_head(), torch.randn(64, 32)
    found = unitify.estimate(model, x)
    head, hidden = found["p_2_weight"], found["linear"]
    assert math.isclose(head.forward or 0.0, math.sqrt(1e-4 / 8), rel_tol=0.1)
    assert math.isclose(
        hidden.forward or 0.0, float(model[0](x).square().mean().sqrt()), rel_tol=1e-4
    )
    assert hidden.backward


def test_a_committed_plan_of_them_is_the_one_of_now() -> None:
    """``check --plan`` makes the second run, too."""
    torch.manual_seed(0)
    model, x = zero_head(), torch.randn(64, 32)
    committed = unitify.transform(model, x, recipe="fp8").plan
    found = check(
        subject_of(model, (x,), None, read_recipe("fp8"), load_rules()), settings_from({}),
        load_rules(), SourceLines(Repository.around(Path()), model, None),
        is_measured=True, batches=[x], comparison=Comparison(committed=committed),
    )  # fmt: skip
    assert "U808" not in found.counts
