"""Nets in which a weight is used twice, or a gate multiplies: both ways, for their gradients.

Each has a residual branch first, behind which the library's transform leaves out its constraints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """Plain torch. ``kind``: "reused" (one layer twice), "tied" (masked tokens) or "gated"."""

    def __init__(self, kind: str, layers: Any = nn) -> None:
        super().__init__()
        self.kind = kind
        self.embedding, self.first = layers.Embedding(64, 32), layers.Linear(32, 32)
        self.layer, self.gate = layers.Linear(32, 32), layers.Linear(32, 32)
        self.head = layers.Linear(32, 64)

    def functions(self) -> Any:
        """Where functions come from."""
        return F

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """[batch, length] each; a target of −100 does not count."""
        f, x = self.functions(), self._residual(self.embedding(tokens))
        if self.kind == "reused":
            x = f.gelu(self.layer(f.gelu(self.layer(x))))
        if self.kind == "gated":
            x = self._gated(x)
        counted = targets.flatten() != -100
        x = x.flatten(0, 1)
        if self.kind == "tied":
            logits = f.linear(x[counted], self.embedding.weight, None)
        else:
            logits = self.head(x[counted])
        return f.cross_entropy(logits, targets.flatten()[counted])

    def _residual(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.first(x))

    def _gated(self, x: Tensor) -> Tensor:
        return self.layer(x) * F.silu(self.gate(x))


class Library(Plain):
    """The same with the library's modules and functions, where it has them."""

    def __init__(self, kind: str) -> None:
        import unit_scaling as uu

        super().__init__(kind, uu)

    def functions(self) -> Any:
        """The library's."""
        import unit_scaling.functional as U

        return U

    def _residual(self, x: Tensor) -> Tensor:
        f = self.functions()
        branch, skip = f.residual_split(x)
        return f.residual_add(f.gelu(self.first(branch)), skip)

    def _gated(self, x: Tensor) -> Tensor:
        return self.functions().silu_glu(self.layer(x), self.gate(x))


def example(kind: str) -> tuple[Tensor, Tensor]:
    """Tokens and targets; of a tied net one target in eight counts, as in masked modeling."""
    tokens, targets = torch.randint(0, 64, (8, 32)), torch.randint(0, 64, (8, 32))
    if kind == "tied":
        targets = targets.masked_fill(torch.rand(8, 32) > 0.125, -100)
    return tokens, targets
