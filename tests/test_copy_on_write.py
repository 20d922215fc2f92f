"""A model keeps its memory: what else reads it, such as an array, still does after a transform."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify


class Branches(nn.Module):
    """No graph of the whole, but islands."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = normed(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x) if float(x.sum()) > 0 else self.second(x) * 2


class Clamps(nn.Module):
    """Writes into its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = normed(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.second.weight.data.clamp_(-0.1, 0.1)
        return self.second(self.first(x))


class WritesPastTorch(nn.Module):
    """Writes into a buffer through an array. It is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("sum", torch.zeros(8))
        self.array = self.sum.numpy()

    def forward(self, x: Tensor) -> Tensor:
        self.array += 1.0
        return self.layer(x) + self.sum


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "whole": (normed, {}),
    "islands": (Branches, {}),
    "writes into its parameter": (Clamps, {}),
    "refused": (WritesPastTorch, {}),
    "not verified": (normed, {"verify": False}),
    "in place": (normed, {"inplace": True}),
    "stored weights": (normed, {"weights": "stored"}),
    "cast": (normed, {"recipe": "fp8-ptq"}),
    "a scheme": (normed, {"scheme": "unit"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_keeps_its_memory(case: str) -> None:
    build, options = CASES[case]
    model = build()
    tensors = [*model.parameters(), *model.buffers()]
    arrays = [t.detach().numpy() for t in tensors]
    before = [t.detach().clone() for t in tensors]
    with warnings.catch_warnings(), contextlib.suppress(unitify.UnitifyError):
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        unitify.transform(model, (torch.randn(4, 8),), **options)
    for tensor, array, number in zip(tensors, arrays, before, strict=True):
        assert torch.equal(tensor, number)
        with torch.no_grad():
            tensor.add_(1)
        assert torch.equal(torch.from_numpy(array), tensor)


def test_a_module_has_memory_of_its_own() -> None:
    model = normed()
    module = unitify.transform(model, (torch.randn(4, 8),))
    for own, theirs in zip(module.parameters(), model.parameters(), strict=True):
        before = theirs.detach().clone()
        own.data.add_(1)
        assert torch.equal(theirs, before)
