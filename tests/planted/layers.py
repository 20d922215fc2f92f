"""Layers of the planted models: some sound, some with a fault."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn


class Block(nn.Module):
    """A residual block as it should be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Overflowing(nn.Module):
    """An exponential that leaves the range of E4M3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scores = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        nn.init.constant_(self.scores.bias, 7.0)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.exp(self.scores(x))  # fault: overflow
        return self.mix(weights / weights.sum(-1, keepdim=True))


@library.custom_op("planted::mystery", mutates_args=())
def mystery(x: Tensor) -> Tensor:
    """An operation that nobody has a rule for."""
    return x.sinh()


@mystery.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return gradient * x.cosh()


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


mystery.register_autograd(_backward, setup_context=_save)


class Mysterious(nn.Module):
    """A layer with an operation of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return mystery(self.linear(x))  # fault: unknown


class Detached(nn.Module):
    """A branch that never learns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Linear(width, width)
        self.side = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.side(x).detach()  # fault: detached
        return self.main(x) + branch


class StraightThrough(torch.autograd.Function):
    """Rounds, and hands gradients on as they are."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        return gradient


class Rounded(nn.Module):
    """A layer whose backward pass a graph would lose."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x)
        return StraightThrough.apply(hidden)  # fault: function
