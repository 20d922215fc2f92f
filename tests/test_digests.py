"""Digests of gradients: as equal as the gradients, whose memory they give back."""

from __future__ import annotations

import pytest
import torch
from python_state import Linear, transformed, x
from torch import Tensor, nn

import unitify
from unitify.capture.digests import digest, gradients_as_digests

TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int8)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_digest_is_of_every_bit(dtype: torch.dtype) -> None:
    tensor = (torch.randn(3, 5) * 9).to(dtype)
    assert digest(tensor) == digest(tensor.clone())
    assert digest(tensor) == digest(tensor.t().contiguous().t())
    assert digest(tensor[0, 0]) == digest(tensor[0, 0].clone())
    for changed in (tensor.reshape(5, 3), tensor[:2], tensor.abs() + 1, tensor.to(torch.float16)):
        assert digest(changed) != digest(tensor)
    assert digest(torch.zeros(2)) != digest(-torch.zeros(2))


def test_gradients_leave_digests_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    named = dict(model.named_parameters())
    model(x()).square().sum().backward()
    expected = {name: [digest(p.grad)] for name, p in named.items() if p.grad is not None}
    model.zero_grad()
    model[0].weight.grad = torch.zeros(8, 8)
    with gradients_as_digests(named) as read:
        model(x()).square().sum().backward()
    kept = {name for name, p in named.items() if p.grad is not None}
    # One that has a gradient already adds to it.
    assert kept == {"0.weight"}
    assert dict(read) == {n: d for n, d in expected.items() if n not in kept}


class ReadsGradients(Linear):
    """Differentiates in ``forward``, and returns the gradient that it finds at a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            self.inner(x.detach()).sum().backward()
        found = self.inner.weight.grad
        assert found is not None
        self.inner.weight.grad = None
        return self.inner(x) * found.sum()


def test_code_that_reads_a_gradient_finds_it() -> None:
    model = ReadsGradients()
    module = transformed(model, x())
    assert torch.equal(module(x(5)), model(x(5)))


class Times(Linear):
    """The same values for every ``by``, and gradients times ``by``."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y * self.by - y.detach() * (self.by - 1)


def test_by_how_much_gradients_differ() -> None:
    module = transformed(Times(1.0), x())
    assert unitify.verify(Times(1.0), module, (x(),)).exact
    found = {
        d.name.partition(",")[0]: d for d in unitify.verify(Times(2.0), module, (x(),)).differences
    }
    assert {"gradient of inner.weight", "gradient of inner.bias"} <= found.keys()
    assert not any(name.startswith("output") for name in found)
    assert all(0 < d.relative < torch.inf for d in found.values())
