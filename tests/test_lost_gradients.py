"""``unitify check`` of a fused projection, of which a piece gets no gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import RULES
from torch import Tensor, nn

import unitify
from unitify.capture.source import Repository
from unitify.check.checking import check
from unitify.check.settings import Settings
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.recipe.reader import read_recipe

RECIPE = read_recipe("fp8,multiple=1")
assert RECIPE is not None


class Fused(nn.Module):
    """Queries, keys and values from one weight, split in some way."""

    def __init__(self, split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.qkv, self.out, self.split = nn.Linear(16, 48), nn.Linear(16, 16), split

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        y: Tensor = self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)
        return y


def _detached(made: Tensor) -> tuple[Tensor, ...]:
    q, k, v = made.chunk(3, -1)
    return q.detach(), k.detach(), v


def _heads(made: Tensor) -> tuple[Tensor, ...]:
    q, k, v = made.unflatten(-1, (3, 16)).unbind(-2)
    return q.detach(), k, v


def _slices(made: Tensor) -> tuple[Tensor, ...]:
    return made[..., :16], made[..., 16:32].detach(), made[..., 32:]


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(
    ("split", "stops"),
    [(_detached, 2), (_heads, 1), (_slices, 1), (lambda made: made.chunk(3, -1), 0)],
    ids=["two thirds", "heads", "slices", "none"],
)
def test_a_dead_piece_of_a_fused_projection(split: Any, stops: int, measured: bool) -> None:
    subject = subject_of(Fused(split), torch.randn(2, 5, 16), None, RECIPE, RULES)
    outcome = check(
        subject, Settings(), RULES, SourceLines(Repository(Path()), subject.model, None),
        is_measured=measured,
    )  # fmt: skip
    found = [f for f in outcome.findings if f.code == "U806"]
    assert [f.severity for f in found] == ["warning"] * stops
    assert all("part of qkv.weight" in f.diagnostic.message for f in found)
    assert unitify.transform(Fused(split), torch.randn(2, 5, 16)).verification.exact
