"""Windows over an image whose pixels are all alike cost the same whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unitify.analysis.analyze import analyze
from unitify.capture.whole import Capture, capture
from unitify.estimates import Estimates
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()
#: What a window may do, on an image of 40 pixels. Percent by which values and gradients of a small
#: image are off at most: edges are a larger share of it, and the seed fixes the rest.
WINDOWS: dict[str, tuple[Callable[[], nn.Module], float, float]] = {
    "plain": (lambda: nn.Conv2d(4, 6, 3), 0.0, -7.9),
    "padding": (lambda: nn.Conv2d(4, 6, 5, padding=2), -8.2, -4.8),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), -3.7, -2.6),
    "stride": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), -5.4, -2.5),
    "patches": (lambda: nn.Conv2d(4, 6, 4, stride=4), 0.0, 0.0),
    "dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=3, padding=3), -9.1, -6.5),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), -2.0, -2.7),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), -3.0, -2.5),
    "oblong": (lambda: nn.Conv2d(4, 6, (1, 5), padding=(0, 2)), -4.7, -2.2),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), -6.6, -1.3,
    ),
    "grouped transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), -5.6, 0.0),
    "maximum": (lambda: nn.MaxPool2d(3, stride=2, padding=1), 2.7, -4.7),
    "mean": (lambda: nn.AvgPool2d(3, stride=1, padding=1), -4.6, -2.5),
    "twice": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 6.3, 1.5),
    "a size": (lambda: nn.Upsample(size=(20, 60)), -1.6, -2.5),
}  # fmt: skip


class Window(nn.Module):
    """Channels that differ, the window, and what its gradient is weighted with."""

    def __init__(self, window: nn.Module) -> None:
        super().__init__()
        self.first, self.window = nn.Conv2d(3, 4, 1), window

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.window(torch.relu(self.first(x)))
        return y


def whole(operation: Any, *_: Any) -> Any:
    return operation


def predicted(held: Capture) -> Estimates:
    return analyze(held, RULES).estimates


@pytest.mark.parametrize("name", WINDOWS)
def test_a_small_image_stands_for_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for edges, which are a larger share of it."""
    make, *expected = WINDOWS[name]
    torch.manual_seed(0)
    held = capture(Window(make()), (torch.randn(4, 3, 40, 40),), {})
    small = predicted(held)
    for module in ("on_arrays", "forward", "backward"):
        monkeypatch.setattr(f"unitify.analysis.{module}.on_small_image", whole)
    off = [
        (
            100 * (small[value].forward / rms.forward - 1),
            100 * (small[value].backward / rms.backward - 1),
        )
        for value, rms in predicted(held).items()
    ]
    worst = [max(found, key=abs) for found in zip(*off, strict=True)]
    assert worst == pytest.approx(expected, abs=0.05)


def test_a_bias_that_a_norm_takes_out_of_a_large_image() -> None:
    """Every operation between them is tried on a small image."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.BatchNorm2d(4))
    held = capture(net, (torch.randn(4, 3, 200, 200),), {})
    assert predicted(held)["p_0_bias"].backward == 0


class Elements(TorchDispatchMode):
    """Counts the elements of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        listed = result if isinstance(result, list | tuple) else [result]
        self.count += sum(t.numel() for t in listed if isinstance(t, Tensor) and not t.is_meta)
        return result


def elements(net: nn.Module, *inputs: Tensor) -> int:
    held = capture(net, inputs, {})
    with Elements() as elements:
        predicted(held)
    return elements.count


@pytest.mark.parametrize("name", ["residual_cnn", "mixed_convolutions", "unet"])
def test_time_does_not_follow_the_size_of_images(name: str) -> None:
    """Inputs and targets are read some dozen times; beside that nothing grows with the pixels."""
    net, args, _ = zoo.build(name)
    counts, sizes = [], []
    for pixels in (256, 512):
        inputs = [
            x.repeat(1, 1, pixels // x.shape[2], pixels // x.shape[3]) if x.dim() == 4 else x
            for x in args
        ]
        counts.append(elements(net, *inputs))
        sizes.append(sum(x.numel() for x in inputs))
    assert counts[1] - counts[0] < 32 * (sizes[1] - sizes[0])
