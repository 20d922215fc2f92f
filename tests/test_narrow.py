"""Narrow formats: masks, gradients that cancel, and small numbers keep what they are for."""

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


class Masked(nn.Module):
    """Attention under a mask, which a constant makes in one of several ways."""

    def __init__(self, fill: float, way: str) -> None:
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.fill, self.way = fill, way
        self.register_buffer("causal", torch.full((16, 16), fill).triu(1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 32**0.5
        if self.way == "fill":
            scores = scores.masked_fill(mask[:, None, :] == 0, self.fill)
        elif self.way == "where":
            scores = torch.where(mask[:, None, :] == 0, self.fill, scores)
        elif self.way == "sum":
            scores = scores + (1 - mask[:, None, :].to(scores.dtype)) * self.fill
        elif self.way == "full":
            size = x.shape[1]
            scores = scores + torch.full((size, size), self.fill).triu(1)
        else:
            scores = scores + self.causal
        return scores.softmax(-1) @ v


@pytest.mark.parametrize("way", ["fill", "where", "sum", "full", "buffer"])
@pytest.mark.parametrize("fill", [-1e4, -1e9, -1e20, torch.finfo(torch.float32).min])
def test_a_mask_sets_no_scale(fill: float, way: str) -> None:
    """FP16 keeps the scores as well as without a mask, whatever stands for "never"."""
    torch.manual_seed(0)
    x, mask = 3 * torch.randn(2, 16, 32), torch.ones(2, 16, dtype=torch.long)
    mask[0, 10:] = 0
    model = Masked(fill, way)
    module = unitify.transform(model, (x, mask), recipe="fp16")
    expected = model(x, mask)
    error = (module(x, mask) - expected).norm() / expected.norm()
    assert error < 2.0**-9  # FP16 rounds by 2^-11.


class Loud(nn.Module):
    """Pieces of an activation times a large number: no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layer(x).chunk(2, -1)
        return first * 2.0**20 + second


def test_a_large_number_is_no_mask() -> None:
    torch.manual_seed(0)
    model, x = Loud(), torch.randn(16, 32)
    module = unitify.transform(model, x, recipe="fp16")
    error = (module(x) - model(x)).norm() / model(x).norm()
    assert error < 2.0**-9


class RootMeanSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Deviation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / x.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()


@pytest.mark.parametrize("norm", [RootMeanSquare, Deviation])
def test_the_eps_of_a_norm_does_not_vanish(norm: Callable[[], nn.Module]) -> None:
    """Padding is zero, in the example or in a later batch."""
    torch.manual_seed(0)
    tokens = torch.randint(1, 50, (4, 8))
    padded = tokens.clone()
    padded[:, 6:] = 0
    embedding = nn.Embedding(50, 32, padding_idx=0)
    with torch.no_grad():
        embedding.weight *= 8
    model = nn.Sequential(embedding, norm(), nn.Linear(32, 16))
    for example in (tokens, padded):
        module = unitify.transform(model, example, recipe="fp16")
        module(padded).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        torch.testing.assert_close(module(padded), model(padded), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("recipe", ["fp8", "fp16", "bf16"])
def test_a_bias_under_autocast(recipe: str) -> None:
    """Autocast narrows what a layer takes, but not its bias; the result has the narrow type."""
    torch.manual_seed(0)
    x, image = torch.randn(16, 32), torch.randn(4, 16, 8, 8)
    convolutions = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1))
    for model, given in ((nn.Linear(32, 32), x), (convolutions, image)):
        for is_inside in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_inside):
                module = unitify.transform(model, given, recipe=recipe)
            with torch.autocast("cpu", torch.bfloat16):
                expected, found = model(given), module(given)
            assert found.dtype == expected.dtype
            torch.testing.assert_close(found, expected, rtol=0.2, atol=0.2)


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
