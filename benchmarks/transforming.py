"""The time of ``transform`` by stage, and of importing the package."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import unitify
from benchmarks.models import SIZES, build
from benchmarks.turns import ratios

STAGES = ("capture", "reparametrize", "estimate", "plan", "rewrite", "verify")
#: Layers of the chain that is transformed: about 3 nodes each.
LAYERS = (33, 333, 3333)
#: Twice the pixels along each side of an image.
LENGTHS = (128, 256, 512)


class Chain(nn.Module):
    """Layers with a residual stream, three operations each."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 16] to the same."""
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) / len(self.layers)
        return x


def by_stage(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> dict[str, float]:
    """Stage → seconds, by ``on_stage``."""
    found: dict[str, float] = {}
    last = time.perf_counter()

    def on_stage(stage: str, _: Any) -> None:
        nonlocal last
        now = time.perf_counter()
        found[stage] = found.get(stage, 0.0) + now - last
        last = now

    unitify.transform(model, args, kwargs, on_stage=on_stage)
    return found


def stages() -> Iterator[list[str]]:
    """A row a length of the chain."""
    for layers in LAYERS:
        torch.manual_seed(0)
        found = by_stage(Chain(layers), (torch.randn(4, 16),))
        yield [str(4 * layers), *(f"{found[stage]:.2f}" for stage in STAGES)]


def by_input() -> Iterator[list[str]]:
    """A row a size of the images of a convolutional net."""
    for length in LENGTHS:
        model, batch = build("residual CNN", replace(SIZES[0], length=length))
        found = by_stage(model, (), dict(batch))
        yield [str(length // 2), *(f"{found[stage]:.2f}" for stage in STAGES)]


def imports() -> dict[str, float]:
    """Each over ``import torch`` in a process of its own."""
    codes = {
        "import torch": "import torch",
        "import unitify": "import unitify",
        "unitify --help": "import sys; sys.argv = ['unitify', '--help']\n"
        "from unitify_command import main\ntry: main()\nexcept SystemExit: pass",
    }

    def run_of(code: str) -> Any:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    return ratios({name: run_of(code) for name, code in codes.items()}, turns=5)
