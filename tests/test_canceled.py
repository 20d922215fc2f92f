"""Gradients that are zero but for rounding: their scales, and what ``check`` says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.check.asserting import check_model


class Shifted(nn.Module):
    """A shift of each channel, added by hand, in front of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(16))
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.shift.view(1, -1, 1, 1))


@pytest.mark.parametrize("frozen", ["1", ""])
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)],
        lambda: [nn.Conv2d(3, 16, 3), Shifted()],
        lambda: [nn.Conv2d(3, 16, 3), nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))],
        lambda: [nn.ConvTranspose2d(3, 16, 3), nn.BatchNorm2d(16, affine=False)],
    ],
    ids=["bias", "shift", "two biases", "transposed"],
)
def test_a_gradient_that_training_cancels_keeps_its_range(
    layers: Callable[[], list[nn.Module]], frozen: str
) -> None:
    """A bias in front of a batch norm has no gradient until the norm is frozen."""
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    model = nn.Sequential(*layers(), *head)
    images = torch.randn(8, 3, 12, 12)
    module = unitify.transform(model, images, recipe="fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        for one in (model, module):
            one.get_submodule(frozen).eval()
            one(images).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            module.get_parameter(name).grad, parameter.grad, rtol=0.02, atol=1e-4
        )


def test_a_gradient_of_rounding_is_not_judged() -> None:
    """A bias in front of a batch norm: its gradient is a note in train mode, and none in eval."""
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    for training in (True, False):
        checked = check_model(model.train(training), torch.randn(64, 16), recipe="fp16")
        note = "not judged, because zero but for rounding: the gradient of 0.bias"
        assert (note in checked.notes) is training
        assert (
            "0.bias" in {case.name for case in checked.cases if case.direction == "backward"}
        ) is (not training)
