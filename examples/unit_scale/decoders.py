"""Two decoders, each in plain torch and by hand with modules of the ``unit-scaling`` library.

GPT-style: learned positions, layer norm, GELU. Llama-style: RMS norm and a gated unit, as the
library's own ``TransformerDecoder`` has it. Both return the mean cross-entropy of the next token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """Of a decoder and of its batch."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    vocabulary: int = 256
    batch: int = 8
    length: int = 64

    def tokens(self) -> Tensor:
        """[batch, length], uniform."""
        return torch.randint(0, self.vocabulary, (self.batch, self.length))


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class GatedUnit(nn.Module):
    """SwiGLU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same."""
        return self.down(self.up(x) * F.silu(self.gate(x)))


class Decoder(nn.Module):
    """Plain torch. ``style``: "gpt" or "llama"."""

    def __init__(self, size: Size, style: str) -> None:
        super().__init__()
        width = size.width
        self.embedding = nn.Embedding(size.vocabulary, width)
        self.positions = nn.Embedding(size.length, width) if style == "gpt" else None
        norm: Callable[[int], nn.Module] = nn.LayerNorm if style == "gpt" else nn.RMSNorm
        self.norms = nn.ModuleList(norm(width) for _ in range(2 * size.layers))
        self.branches = nn.ModuleList()
        for _ in range(size.layers):
            self.branches.append(Attention(width, size.heads))
            self.branches.append(_mlp(nn, width) if style == "gpt" else GatedUnit(width))
        self.last, self.head = norm(width), nn.Linear(width, size.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length] to a single number."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x))
        logits = self.head(self.last(x))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _mlp(modules: ModuleType | Any, width: int) -> nn.Sequential:
    return nn.Sequential(
        modules.Linear(width, 4 * width), modules.GELU(), modules.Linear(4 * width, width)
    )


class LibraryDecoder(nn.Module):
    """The same with the library's modules and residual rule (that of u-μP, its default)."""

    def __init__(self, size: Size, style: str) -> None:
        super().__init__()
        import unit_scaling as uu
        from unit_scaling.core.functional import transformer_residual_scaling_rule

        width, count = size.width, 2 * size.layers
        self.embedding = uu.Embedding(size.vocabulary, width)
        self.positions = uu.Embedding(size.length, width) if style == "gpt" else None
        norm = uu.LayerNorm if style == "gpt" else uu.RMSNorm
        self.norms = nn.ModuleList(norm(width) for _ in range(count))
        self.branches = nn.ModuleList()
        for _ in range(size.layers):
            self.branches.append(uu.MHSA(width, size.heads, is_causal=True))
            self.branches.append(_mlp(uu, width) if style == "gpt" else uu.MLP(width))
        self.last, self.head = norm(width), uu.LinearReadout(width, size.vocabulary)
        rule = transformer_residual_scaling_rule()
        self.taus = [rule(i, count) for i in range(count)]

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, length] to a single number."""
        import unit_scaling.functional as U

        x = self.embedding(tokens)
        if self.positions is not None:
            x = U.add(x, self.positions(torch.arange(tokens.shape[1], device=tokens.device)))
        for norm, branch, tau in zip(self.norms, self.branches, self.taus, strict=True):
            branched, skip = U.residual_split(x, tau=tau)
            x = U.residual_add(branch(norm(branched)), skip, tau=tau)
        logits = self.head(self.last(x))
        return U.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
