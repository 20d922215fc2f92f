"""A small model that training has to be careful with, and twenty steps of it."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from conversion import RULES
from strategies import random_plan
from torch import Tensor, nn
from torch.optim import Optimizer

import unitify
from unitify.capture.whole import capture
from unitify.module.assembly import build
from unitify.part import Part
from unitify.rewrite import rewrite

STEPS = 20
ADAMW = {"lr": 0.01, "weight_decay": 0.1}

Pair = tuple[nn.Module, unitify.UnitScaledModule]


class Tied(nn.Module):
    """An embedding that is the head, too; a frozen layer; a parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + F.gelu(self.hidden(self.norm(self.frozen(x))))
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten().roll(-1))


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(seed))


def scaled_at_random(model: nn.Module, *args: Any) -> unitify.UnitScaledModule:
    """Every parameter at a scale of its own, in both directions."""
    captured = capture(model, args, {})
    generator = random.Random(5)
    chosen = random_plan(lambda _: generator.randint(-6, 6), captured, RULES)
    return build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))


@functools.cache
def _pristine() -> Pair:
    torch.manual_seed(0)
    model = Tied()
    return model, scaled_at_random(model, tokens(0))


def fresh_pair() -> Pair:
    """Copies of a model and of its transformed module, to train."""
    model, module = _pristine()
    return copy.deepcopy(model), copy.deepcopy(module)


def assert_same_parameters(model: nn.Module, module: unitify.UnitScaledModule) -> None:
    stored = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        true = stored[name].detach() * module.plan.parameters[name].fwd
        assert torch.equal(true, parameter.detach()), name


Clip = Callable[[nn.Module], Any]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    clip: Clip = lambda _: None,
    scheduler: Any = None,
    accumulate: int = 1,
) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulate):
            model(tokens(step * accumulate + part)).backward()
        clip(model)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
