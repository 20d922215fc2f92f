"""A model whose layers had other names once, its checkpoint, and how a file fills it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from unitify.checkpoint.files import read_state_dicts
from unitify.checkpoint.filling import Allowed, fill
from unitify.diagnostics import UnitifyError


class Normed(nn.Module):
    """Batch norm and weight norm: layers whose names were others once."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU())
        self.head = parametrizations.weight_norm(nn.Linear(8, 6))
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.head(self.body(x)))


def trained() -> Normed:
    """With numbers of its own everywhere."""
    torch.manual_seed(11)
    model = Normed()
    for _ in range(3):
        model(torch.randn(9, 6))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor))
    return model.eval()


X = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
MODEL = trained()
STATE = MODEL.state_dict()


def under(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def optimizer_state() -> dict[str, Any]:
    model = trained().train()
    optimizer = torch.optim.Adam(model.parameters())
    model(X).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def filled(path: Path, factory: Callable[[], nn.Module] = Normed, **allowed: Any) -> nn.Module:
    torch.manual_seed(12)
    model = factory().eval()
    model.notes = fill(model, read_state_dicts(path), str(path), Allowed(**allowed))
    return model


def same(ours: nn.Module, theirs: nn.Module = MODEL) -> bool:
    return torch.equal(ours(X), theirs(X)) and all(
        torch.equal(tensor, theirs.state_dict()[name])
        for name, tensor in ours.state_dict().items()
        if "num_batches" not in name
    )


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UnitifyError) as caught:
        action()
    return str(caught.value)
