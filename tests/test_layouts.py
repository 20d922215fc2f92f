"""Sparse, compressed and nested tensors: as inputs, as buffers, and within a model."""

from __future__ import annotations

import warnings

import pytest
import torch
from python_state import transformed
from torch import Tensor, nn

import unitify


class Graph(nn.Module):
    """A convolution on a graph, whose edges are an input or a buffer."""

    def __init__(self, edges: Tensor | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("edges", edges)
        self.embedding, self.out = nn.Parameter(torch.randn(8, 3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(
            x @ self.embedding if self.edges is None else self.edges @ self.embedding + x
        )


class Padded(nn.Module):
    """Sequences of several lengths, nested by the caller or by the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_nested:
            x = torch.nested.as_nested_tensor([x[0], x[1, :2]])
        return self.out(torch.nested.to_padded_tensor(self.inner(x), 0.0))


def edges(layout: torch.layout) -> Tensor:
    dense = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)).round()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Some layouts are said to be in beta.
        return dense.to_sparse(layout=layout)


def nested(layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(3, 8), torch.ones(2, 8)], layout=layout)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    output = model(x)
    output.square().sum().backward()
    return [output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same(model: nn.Module, module: unitify.UnitScaledModule, x: Tensor) -> None:
    mine, theirs = gradients(model, x), gradients(module, x)
    assert len(mine) == len(theirs)
    assert all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_tensors(layout: torch.layout) -> None:
    given, x = edges(layout), torch.randn(5, 3)
    assert_same(Graph(), transformed(Graph(), given), given)
    assert_same(Graph(given), transformed(Graph(given), x), x)


@pytest.mark.parametrize("x", [nested(torch.strided), nested(torch.jagged), torch.ones(2, 4, 8)])
def test_nested_tensors(x: Tensor) -> None:
    module = transformed(Padded(), x)
    assert "out" in module.parts
    assert_same(Padded(), module, x)
