"""What a framework is asked: losses, gradient norms, a saved file in the plain model, resuming.

A row is a function that trains a model under one framework. It is run on the original and on the
transformed module, and what the two give is compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify

COLUMNS = ("losses", "norms", "saved", "resumed")


@dataclass
class Trained:
    """What one training leaves; a column that a framework does not have stays empty.

    ``losses``, ``norms``: one a step. ``saved``: the state dict of a plain model that was given the
    saved file. ``resumed``: losses after training went on from what was saved.
    """

    losses: list[Any] = field(default_factory=list)
    norms: list[Any] = field(default_factory=list)
    saved: dict[str, Tensor] = field(default_factory=dict)
    resumed: list[Any] = field(default_factory=list)


def same(expected: Any, found: Any) -> bool:
    """Bitwise, whatever it is; numbers that are not finite are equal to none."""
    if isinstance(expected, Tensor):
        return (
            isinstance(found, Tensor)
            and expected.dtype == found.dtype
            and torch.equal(expected, found)
        )
    if isinstance(expected, dict):
        return list(expected) == list(found) and all(
            same(value, found[name]) for name, value in expected.items()
        )
    if isinstance(expected, list | tuple):
        return len(expected) == len(found) and all(map(same, expected, found))
    return type(expected) is type(found) and bool(expected == found)


def compared(expected: Trained, found: Trained) -> dict[str, bool]:
    """Column → is it bitwise the original's?  Columns that the original leaves empty are left out.

    What never changes says nothing: losses have to differ from step to step.
    """
    columns = {name: getattr(expected, name) for name in COLUMNS}
    losses = [float(loss) for loss in expected.losses]
    assert len(set(losses)) == len(losses) > 1, losses
    return {
        name: same(value, getattr(found, name)) for name, value in columns.items() if len(value)
    }


Row = Callable[[Callable[[], nn.Module]], Trained]


def is_same(row: Row, model: nn.Module, module: nn.Module) -> dict[str, bool]:
    """``row`` on copies of either."""
    import copy

    expected, found = (row(lambda of=of: copy.deepcopy(of)) for of in (model, module))
    return compared(expected, found)


class Block(nn.Module):
    """A residual branch of two products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks between two products; weights are small, so that a plan moves them."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.into = nn.Linear(8, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 4)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "norm" not in name:
                    parameter.mul_(2.0**-4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(step: int, rank: int = 0, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step, for one rank."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(rows, 6, 8, generator=generator), torch.randn(
        rows, 6, 4, generator=generator
    )


def transformed(model: nn.Module, **options: Any) -> unitify.UnitScaledModule:
    return unitify.transform(model, (batch(0)[0],), **options)


def adamw(parameters: Any, **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, **options)
