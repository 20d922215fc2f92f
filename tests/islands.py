"""Models that cannot be captured whole, and how their parts are compared with them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion import same
from torch import Tensor, nn

import unitify
import unitify.optim
from unitify.module.assembly import AssembledModule
from unitify.plan.scale_plan import Weights


class Branch(nn.Module):
    """The way through depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.2))
        self.left, self.right = nn.Linear(16, 4), nn.Linear(16, 4)
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        y = self.first(x)
        y = self.left(y) if y.sum() > 0 else self.right(y)
        if shift is not None:
            y = y + shift
        return {"y": y * self.gain}


class Doubled(torch.autograd.Function):
    """Its gradient is not that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


class WithFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.linear(x))


class HoldsFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(8, 8), WithFunction()
        self.after = nn.Sequential(nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inside(self.before(x)))


class Tied(nn.Module):
    """One weight in two islands, one used by Python code outside its island, one only inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.body(self.embedding(tokens))
        if x.sum().item() > 1e9:
            return x
        x = F.linear(x, self.middle.weight) + self.middle(x)
        return self.head(x)


class Called(nn.Module):
    """One island called in several ways: other sizes, other arguments, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if y.sum().item() > 1e9:
            return y
        z = self.block(y[:, :2], factor=2.0)
        return self.block(y).sum(1) + z.sum(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return torch.tanh(self.linear(x) * factor)


CASES: dict[str, tuple[type[nn.Module], tuple[Any, ...], set[str]]] = {
    "branch": (Branch, (torch.randn(4, 8),), {"first", "left"}),
    "function": (HoldsFunction, (torch.randn(4, 8),), {"before", "inside.linear", "after"}),
    "tied": (Tied, (torch.randint(0, 12, (3, 5)),), {"embedding", "body", "middle", "head"}),
}


@functools.cache
def transformed(name: str, weights: Weights) -> tuple[nn.Module, tuple[Any, ...], AssembledModule]:
    torch.manual_seed(0)
    kind, args, _ = CASES[name]
    model = kind()
    if name == "branch":
        with torch.no_grad():
            model.first[0].bias += 1.0
    with pytest.warns(unitify.UnitifyWarning, match="U1"):
        module = unitify.transform(model, args, scales="measured", weights=weights)
    assert isinstance(module, AssembledModule)
    return model, args, module


def built(
    name: str, weights: Weights = "true"
) -> tuple[nn.Module, tuple[Any, ...], AssembledModule]:
    """A copy of its own for each use."""
    return copy.deepcopy(transformed(name, weights))


def gradients(model: nn.Module, args: tuple[Any, ...], seed: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(*args)
    output = output["y"] if isinstance(output, dict) else output
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **found}


def assert_same(model: nn.Module, module: AssembledModule, args: tuple[Any, ...]) -> None:
    expected, found = gradients(model, args), gradients(module, args)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        bwd = module.plan.parameters[name].bwd if name != "output" else 1.0
        assert same(tensor, found[name] * bwd), name
