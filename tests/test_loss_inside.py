"""A model that computes its loss itself: casts follow the gradient of what the loss is made of."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.arrival import loss_starts

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16)


class Classifier(nn.Module):
    """``loss``: computed here; None leaves it to the caller."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.inner(x)
        return z if self.loss is None else self.loss(z, y)


def squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - F.one_hot(y, 16).to(z.dtype)).square().mean()


RECIPES = ("fp8", "fp8,simulate=true", "nvfp4", "fp16")


@pytest.mark.parametrize("loss", [F.cross_entropy, squares])
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_as_with_the_loss_outside(
    recipe: str, loss: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Bit for bit, while the gradients shrink by decades."""
    torch.manual_seed(0)
    model = Classifier(loss)
    apart = Classifier(None)
    apart.load_state_dict(model.state_dict())
    inside = unitify.transform(model, (X, Y), recipe=recipe)
    outside = unitify.transform(apart, (X, Y), recipe=recipe, loss_fn=lambda z: loss(z, Y))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=3e-3) for m in (inside, outside)]
    for _ in range(300):
        losses = inside(X, Y), loss(outside(X, Y), Y)
        for optimizer, value in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    assert float(losses[0]) < 0.02
    for own, other in zip(inside.parameters(), outside.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
        assert recipe == "fp16" or torch.equal(own, other)


class Language(nn.Module):
    """A loss, the logits that it is made of and hidden states are outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 32)
        self.body = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 32)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.body(self.embedding(tokens))
        logits = self.head(hidden)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        return loss, logits, hidden


class TwoLosses(nn.Module):
    """Both are made of one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.trunk = nn.Embedding(32, 32), nn.Linear(32, 64)
        self.first, self.second = nn.Linear(64, 16), nn.Linear(64, 16)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(self.embedding(tokens)).relu()
        first = F.cross_entropy(self.first(hidden).flatten(0, 1), tokens.flatten() % 16)
        return first, (self.second(hidden) - 1).square().mean()


class Sum(TwoLosses):
    """One loss of two terms, and of a penalty on weights."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        first, second = super().forward(tokens)
        return first + 0.01 * second + 1e-4 * self.trunk.weight.square().sum(), second


TOKENS = torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(1))
MODELS: dict[str, Callable[[], nn.Module]] = {
    "language": Language,
    "two losses": TwoLosses,
    "a sum": Sum,
}


def gradients(module: nn.Module, weights: tuple[float, ...]) -> dict[str, Tensor]:
    module.zero_grad()
    parts = [weight * out.square().mean() if out.dim() else weight * out
             for weight, out in zip(weights, module(TOKENS), strict=False) if weight]  # fmt: skip
    torch.stack(parts).sum().backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_a_sum_of_losses_has_a_start_for_each_term() -> None:
    torch.manual_seed(0)
    module = unitify.transform(Sum(), TOKENS, recipe="fp8")
    assert set(loss_starts(module.capture, module.plan)) == {"linear_1", "linear_2"}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1e-3), (0.0, 1.0), (1e-5, 1e3)])
@pytest.mark.parametrize("recipe", ["fp8", "nvfp4"])
@pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)
def test_every_way_to_run_it_rounds_alike(
    made: Callable[[], nn.Module], recipe: str, weights: tuple[float, ...]
) -> None:
    """As one graph, and by the graphs of submodules where one has a hook; at any scale."""
    torch.manual_seed(0)
    module = unitify.transform(made(), TOKENS, recipe=recipe)
    hooked = copy.deepcopy(module)
    seen: list[str] = []
    hooked.embedding.register_forward_hook(lambda *_: seen.append("embedding"))
    expected, found = gradients(module, weights), gradients(hooked, weights)
    assert seen
    scaled = gradients(module, tuple(math.ldexp(w, -30) for w in weights))
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
        assert torch.equal(expected[name] * 2.0**-30, scaled[name]), name
