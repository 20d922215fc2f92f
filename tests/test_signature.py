"""A captured graph is called as the original was, whatever the order of the arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import unitify


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return self.linear(x) * gain + shift


def test_keyword_inputs_may_come_in_any_order() -> None:
    model = Affine()
    x, gain, shift = (torch.randn(3, 4) for _ in range(3))
    module = unitify.transform(model, example_kwargs={"shift": shift, "x": x, "gain": gain})
    expected = model(x, gain, shift)
    assert torch.equal(module(x, gain, shift), expected)
    assert torch.equal(module(shift=shift, gain=gain, x=x), expected)
