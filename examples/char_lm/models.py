"""The language models of Blake et al. 2023 (arXiv 2303.11257, section 6.1) in small.

A stack of blocks, each a layer that mixes positions (attention, causal convolution or a
recurrence) and a feed-forward layer, each in a residual branch with layer norm before or after.
Every parameter has PyTorch's own initialization.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """``mixer``: "attention", "convolution" or "recurrence"; ``norm``: "pre", "post" or "none".

    ``gains``: do norms have gains and biases that are trained?
    """

    mixer: str
    norm: str
    width: int = 64
    depth: int = 2
    length: int = 32
    gains: bool = True

    def __str__(self) -> str:
        return f"{self.mixer}, {self.norm}-norm"


class Attention(nn.Module):
    """Causal self-attention with two heads."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        q, k, v = self.into(x).unflatten(-1, (3 * self.heads, -1)).transpose(1, 2).chunk(3, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """A causal convolution of kernel 7 over groups of 16 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 7, groups=width // 16)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        return self.conv(F.pad(x.transpose(1, 2), (6, 0))).transpose(1, 2)


class Recurrence(nn.Module):
    """A recurrent highway: the state moves towards a candidate as far as a gate says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 2 * width)
        self.state = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        state, states = torch.zeros_like(x[:, 0]), []
        for step in self.into(x).unbind(1):
            candidate, gate = (step + self.state(state)).chunk(2, -1)
            state = state + gate.sigmoid() * (candidate.tanh() - state)
            states.append(state)
        return torch.stack(states, 1)


MIXERS = {"attention": Attention, "convolution": Convolution, "recurrence": Recurrence}


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        return self.down(F.gelu(self.up(x)))


def norm_of(shape: Shape) -> nn.LayerNorm:
    """A layer norm over the width."""
    return nn.LayerNorm(shape.width, elementwise_affine=shape.gains)


class Branch(nn.Module):
    """A residual branch with layer norm before it, after the sum, or nowhere."""

    def __init__(self, body: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.body, self.norm = body, norm_of(shape) if shape.norm != "none" else nn.Identity()
        self.is_pre = shape.norm == "pre"

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        return x + self.body(self.norm(x)) if self.is_pre else self.norm(x + self.body(x))


class LanguageModel(nn.Module):
    """Characters and those that follow them → mean cross-entropy in nats, 0-d."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        width = shape.width
        # Sixteen divides the widths that FP8 hardware takes.
        vocabulary = -(-vocabulary // 16) * 16
        self.embedding = nn.Embedding(vocabulary, width)
        is_attention = shape.mixer == "attention"
        self.positions = nn.Embedding(shape.length, width) if is_attention else None
        self.blocks = nn.Sequential()
        for _ in range(shape.depth):
            self.blocks.append(Branch(MIXERS[shape.mixer](width), shape))
            self.blocks.append(Branch(FeedForward(width), shape))
        self.last = norm_of(shape) if shape.norm == "pre" else nn.Identity()
        self.head = nn.Linear(width, vocabulary)

    def forward(self, characters: Tensor, following: Tensor) -> Tensor:
        """Both [batch, length]."""
        x = self.embedding(characters)
        if self.positions is not None:
            x = x + self.positions.weight[: x.shape[1]]
        logits = self.head(self.last(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())
