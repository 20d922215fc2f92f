"""A training that is stopped and resumed, cut into micro-batches, or run under autocast."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler
from training import fresh_pair, scaled_at_random, tokens

import unitify
from unitify import optim
from unitify.formats.table import E4M3
from unitify.plan.scale_plan import ScalePlan

ADAMW = {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}
O = torch.optim  # noqa: E741


class Net(nn.Module):
    """Dropout, a buffer that trains and a tied head: all that a checkpoint has to hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.norm = nn.BatchNorm1d(16)
        self.hidden = nn.Linear(16, 16)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.embedding(ids).transpose(1, 2)).transpose(1, 2)
        x = self.dropout(F.gelu(self.hidden(x)))
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten())


def ids(seed: int) -> Tensor:
    return torch.randint(0, 32, (4, 6), generator=torch.Generator().manual_seed(seed))


def optimizer_for(module: nn.Module) -> tuple[Any, Any]:
    made = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    return made, lr_scheduler.StepLR(made, 3, 0.5)


def train(module: Any, optimizer: Any, schedule: Any, steps: range) -> None:
    for seed in steps:
        optimizer.zero_grad()
        module(ids(seed)).backward()
        optim.clip_grad_norm_(module, 1.0)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("recipe", "is_rebased"), [(None, False), ("fp8", True)])
def test_a_resumed_training_is_the_uninterrupted_one(recipe: str | None, is_rebased: bool) -> None:
    torch.manual_seed(0)
    module = unitify.transform(Net(), (ids(0),), recipe=recipe, weights="stored")
    optimizer, schedule = optimizer_for(module)
    train(module, optimizer, schedule, range(5))
    if is_rebased:
        assert unitify.rebase_(module, [ids(5), ids(6)]).values > 0
    file = io.BytesIO()
    torch.save(
        {
            "weights": module.state_dict(),
            "plan": module.plan.to_json(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
        },
        file,
    )
    train(module, optimizer, schedule, range(5, 11))

    file.seek(0)
    held = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    resumed = unitify.rebuild(
        Net(), held["weights"], ScalePlan.from_json(held["plan"]), (ids(0),), recipe=recipe
    )
    optimizer, schedule = optimizer_for(resumed)
    optimizer.load_state_dict(held["optimizer"])
    schedule.load_state_dict(held["schedule"])
    torch.set_rng_state(held["random"])
    train(resumed, optimizer, schedule, range(5, 11))
    assert resumed.plan == module.plan
    expected = module.state_dict()
    assert expected.keys() == resumed.state_dict().keys()
    assert all(torch.equal(t, expected[name]) for name, t in resumed.state_dict().items())


def test_gradients_of_micro_batches_add_up_as_the_originals() -> None:
    model, module = fresh_pair()
    for owner in (model, module):
        for seed in range(4):
            (owner(tokens(seed)) / 4).backward()
    stored = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert stored[name].grad is None
        else:
            true = stored[name].grad * module.plan.parameters[name].bwd
            assert torch.equal(true, parameter.grad), name


def test_autocast_to_bfloat16_is_the_originals() -> None:
    """Its exponents are those of float32, so that factors commute with its rounding, too."""
    torch.manual_seed(0)
    model = Net().train()
    module = scaled_at_random(model, ids(0)).train()
    found = []
    for owner in (copy.deepcopy(model), module):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = owner(ids(1))
        loss.backward()
        found.append((loss, dict(owner.named_parameters())))
    (expected, true), (loss, stored) = found
    assert torch.equal(loss, expected)
    for name, parameter in true.items():
        bwd = module.plan.parameters[name].bwd
        assert torch.equal(stored[name].grad * bwd, parameter.grad), name


def test_autocast_to_float16_needs_no_loss_scaling() -> None:
    """Gradients that float16 holds as zero in the original are here those of a scaled loss."""
    torch.manual_seed(0)

    class Faint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

        def forward(self, x: Tensor) -> Tensor:
            return 2.0**-20 * self.layers(x).square().mean()

    model, x = Faint(), torch.randn(64, 32)
    module = unitify.transform(model, (x,), weights="stored")
    with torch.autocast("cpu", dtype=torch.float16):
        faint, scaled, own = model(x), model.layers(x).square().sum(), module(x)
    lost = torch.autograd.grad(faint, list(model.parameters()))
    assert not any(gradient.any() for gradient in lost)
    true = torch.autograd.grad(scaled, list(model.parameters()))
    kept = torch.autograd.grad(own, list(module.parameters()))
    for (name, _), expected, stored in zip(module.named_parameters(), true, kept, strict=True):
        bwd = module.plan.parameters[name].bwd
        assert torch.equal(stored * bwd, expected * 2.0**-20 / (64 * 32)), name


def test_autocast_and_a_recipe_go_together() -> None:
    """Casts round what autocast hands them; the loss is as far from float32 as rounding allows."""
    torch.manual_seed(0)
    model = Net().eval()
    module = unitify.transform(model, (ids(0),), recipe="fp8").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module(ids(1))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert abs(float(loss / model(ids(1))) - 1) < 2.0**-E4M3.mantissa_bits
