"""Codes that several layers share: made once, and never those of other numbers."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.runtime import shared_codes
from unitify.runtime.scaled_mm import encode

fp8_linear = torch.ops.unitify.fp8_linear


class Branches(nn.Module):
    """Three layers of one input, and one of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return torch.tanh(self.q(hidden) * self.k(hidden)) + self.v(hidden)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tensors of which ``shared_codes`` made codes."""
    found: list[Tensor] = []

    def counting(x: Tensor, *given: object) -> Tensor:
        found.append(x)
        return encode(x, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(shared_codes, "encode", counting)
    return found


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    module(x).square().sum().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def test_one_input_is_encoded_once(encoded: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 16)
    module = unitify.transform(Branches(), (x,), recipe="fp8")
    encoded.clear()
    once = gradients(module, x)
    assert len(encoded) == 2
    monkeypatch.setattr(
        "unitify.runtime.fp8_linear.shared_codes",
        lambda x, *given: shared_codes.shared_codes(x.detach(), *given),
    )
    for one, other in zip(once, gradients(module, x), strict=True):
        assert torch.equal(one, other)


def output(x: Tensor, weight: Tensor) -> Tensor:
    return fp8_linear(x, weight, None, "e4m3", "e5m2")


def test_what_is_written_to_is_encoded_anew(encoded: list[Tensor]) -> None:
    weight = torch.eye(16, requires_grad=True)
    x = torch.ones(4, 16, requires_grad=True) * 1
    assert torch.equal(output(x, weight), torch.ones(4, 16))
    with torch.no_grad():
        x.mul_(2)
    assert torch.equal(output(x, weight), torch.full((4, 16), 2.0))
    assert len(encoded) == 2


def test_another_format_or_scale_is_encoded_anew(encoded: list[Tensor]) -> None:
    weight = torch.eye(16, requires_grad=True)
    x = torch.full((4, 16), 1.0625, requires_grad=True) * 1
    results = [
        fp8_linear(x, weight, None, format, "e5m2", exponent)
        for format, exponent in (("e4m3", 0), ("e5m2", 0), ("e4m3", 20))
    ]
    assert [r[0, 0].item() for r in results] == [1.0, 1.0, 0.0]
    assert len(encoded) == 3


def test_what_a_user_holds_is_always_encoded(encoded: list[Tensor]) -> None:
    """NumPy writes into it, and no version of torch counts that."""
    weight = torch.eye(16, requires_grad=True)
    x = torch.ones(4, 16)
    output(x, weight)
    x.numpy()[:] = 3
    assert torch.equal(output(x, weight), torch.full((4, 16), 3.0))


def test_nothing_is_kept_of_a_tensor_that_is_gone() -> None:
    weight = torch.eye(16, requires_grad=True)
    x = torch.ones(4, 16, requires_grad=True) * 1
    with torch.no_grad():
        output(x, weight)
    assert shared_codes._LATEST.codes is not None
    del x
    gc.collect()
    assert shared_codes._LATEST.codes is None
