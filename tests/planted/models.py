"""Language models with one fault each, and one with all that a graph can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planted.layers import Block, Detached, Mysterious, Overflowing, Rounded

VOCABULARY, WIDTH = 64, 32


class LanguageModel(nn.Module):
    """An embedding, blocks and a head. ``faults``: which of them it has."""

    def __init__(self, *faults: str) -> None:
        super().__init__()
        self.faults = faults
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        if "embedding" in faults:
            nn.init.normal_(self.embedding.weight, std=1e-5)  # fault: embedding
        self.blocks = nn.ModuleList([Block(WIDTH) for _ in range(2)])
        kinds = {
            "overflow": Overflowing,
            "unknown": Mysterious,
            "detached": Detached,
            "function": Rounded,
        }
        for name in faults:
            if name in kinds:
                self.blocks.append(kinds[name](WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(self.norm(hidden))
        if "logits" in self.faults:
            logits = logits * 1e4  # fault: logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        if "loss" in self.faults:
            loss = loss / 1e6  # fault: loss
        return loss


def build(*faults: str) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(*faults)


def sound() -> nn.Module:
    return build()


def embedding() -> nn.Module:
    return build("embedding")


def logits() -> nn.Module:
    return build("logits")


def loss() -> nn.Module:
    return build("loss")


def overflow() -> nn.Module:
    return build("overflow")


def unknown() -> nn.Module:
    return build("unknown")


def detached() -> nn.Module:
    return build("detached")


def function() -> nn.Module:
    return build("function")


def everything() -> nn.Module:
    return build("embedding", "overflow", "unknown", "detached", "logits", "loss")


def tokens() -> tuple[Tensor]:
    """A batch."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(0, VOCABULARY, (4, 12), generator=generator),)
