"""FP8 gradients for losses of any size: means over many tokens, inside or outside of the plan.

    python examples/loss_scale.py

For each number of tokens and each scale of a loss scaler: the least cosine, over weights of two
dimensions, between the gradient under ``recipe="fp8"`` and the model's own. ``amax`` is the same
casts with every scale found at run time: what the format can give at the best scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify

VOCABULARY, WIDTH = 512, 32
TOKENS = (1024, 8192, 32768, 131072)
POWERS = (0, 12, 16, 20)


class Language(nn.Module):
    """One residual block between an embedding and a head; weights as language models draw them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for weight in (self.embedding.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits […, vocabulary] of tokens […]."""
        x = self.embedding(tokens)
        logits: Tensor = self.head(x + self.down(F.gelu(self.up(self.norm(x)))))
        return logits


def batch(count: int, targets: str) -> tuple[Tensor, Tensor]:
    """Tokens, and targets: drawn, or a function of the tokens."""
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randint(0, VOCABULARY, (8, count // 8), generator=generator)
    drawn = torch.randint(0, VOCABULARY, (8, count // 8), generator=generator)
    return tokens, drawn if targets == "drawn" else (tokens * 7 + 3) % VOCABULARY


def gradients(model: nn.Module, tokens: Tensor, targets: Tensor, scale: float) -> dict[str, Tensor]:
    """Gradients of matrices."""
    model.zero_grad()
    (F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()) * scale).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.dim() > 1}


def least_cosine(found: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    """Over all of them."""
    pairs = [(found[n].double().flatten(), true[n].double().flatten()) for n in true]
    return min(float(F.cosine_similarity(a, b, 0)) for a, b in pairs)


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    model = Language()
    tokens, drawn = batch(1024, "drawn")

    def loss_fn(output: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), drawn.flatten())

    modules = {
        "fp8": unitify.transform(model, (tokens,), recipe="fp8"),
        "fp8, loss_fn": unitify.transform(model, (tokens,), recipe="fp8", loss_fn=loss_fn),
        "amax": unitify.transform(model, (tokens,), recipe="fp8-amax"),
    }
    print(f"{'targets':10} {'tokens':>7} {'casts':14}", *(f"    2^{p:<3}" for p in POWERS))
    for kind in ("function", "drawn"):
        for count in TOKENS:
            given = batch(count, kind)
            true = gradients(model, *given, 1.0)
            for name, module in modules.items():
                row = [least_cosine(gradients(module, *given, 2.0**p), true) for p in POWERS]
                print(f"{kind:10} {count:7} {name:14}", *(f"{c:8.4f}" for c in row))


if __name__ == "__main__":
    main()
