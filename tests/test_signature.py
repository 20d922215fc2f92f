"""A captured graph is called as the original was, whatever the order of the arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import unitify


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor, **more: Tensor) -> Tensor:
        return self.linear(x) * gain + shift - 2 * more["first"] / more["second"]


def test_keyword_inputs_may_come_in_any_order() -> None:
    model = Affine()
    x, gain, shift, first, second = (torch.randn(3, 4) for _ in range(5))
    module = unitify.transform(
        model, (x,), {"second": second, "shift": shift, "first": first, "gain": gain}
    )
    expected = model(x, gain, shift, first=first, second=second)
    assert torch.equal(module(x, gain, shift, first=first, second=second), expected)
    assert torch.equal(module(x, gain, second=second, shift=shift, first=first), expected)
