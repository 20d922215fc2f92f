"""Weights held as codes: the same outputs to the bit, and the memory that it saves, measured."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.diagnostics import UnitifyError
from unitify.formats.table import E4M3


class Net(nn.Module):
    """Contractions of every kind, a layer that runs twice, a tied head, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.first, self.twice = nn.Linear(32, 64), nn.Linear(64, 64)
        self.weight = nn.Parameter(torch.randn(64, 32) / 8)
        self.conv = nn.Conv1d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.gelu(self.first(self.embedding(tokens)))
        x = self.twice(F.dropout(self.twice(x), 0.1, self.training))
        x = self.conv((x @ self.weight).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.head(x)
        return logits


def net() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.randint(0, 64, (3, 16))


def memory(module: nn.Module) -> int:
    """Bytes of all storages of parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(held.values())


@pytest.mark.parametrize(
    "recipe", ["fp8", "fp8,simulate=true", "fp8-amax", "fp8-cscale", "fp8-mixed", "fp16"]
)
def test_outputs_are_the_same(recipe: str) -> None:
    model, tokens = net()
    module = unitify.transform(model, (tokens,), recipe=recipe, verify=False)
    made = module.to_inference()
    assert torch.equal(made(tokens), module(tokens))
    assert not made(tokens).requires_grad
    assert not any(p.requires_grad for p in made.parameters())
    assert torch.equal(copy.deepcopy(made)(tokens), module(tokens))
    assert made.casts == module.casts


def test_codes_stand_beside_what_is_used_as_it_is() -> None:
    model, tokens = net()
    made = unitify.transform(model, (tokens,), recipe="fp8", verify=False).to_inference()
    codes = {n for n, b in made.named_buffers() if b.dtype == E4M3.dtype}
    assert codes == {
        "first.weight_e4m3", "twice.weight_e4m3", "weight_e4m3", "conv.weight_e4m3",
        "embedding.weight_e4m3",
    }  # fmt: skip
    assert {n for n, _ in made.named_parameters()} == {
        "embedding.weight", "first.bias", "twice.bias", "conv.bias",
    }  # fmt: skip


@pytest.mark.parametrize("simulate", ["auto", True])
def test_a_quarter_of_the_memory(simulate: str | bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4)))
    x = torch.randn(16, 256)
    recipe = {"base": "fp8", "simulate": simulate}
    module = unitify.transform(model, (x,), recipe=recipe, verify=False)
    made = module.to_inference()
    assert memory(made) * 4 == memory(model) == memory(module)
    assert torch.equal(made(x), module(x))


def test_two_bytes_for_sixteen_bits() -> None:
    model, x = nn.Linear(64, 64, bias=False), torch.randn(4, 64)
    made = unitify.transform(model, (x,), recipe="bf16", verify=False).to_inference()
    assert memory(made) * 2 == memory(model)


def test_islands() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            return self.second(y) if y.sum() > -1e9 else y

    x = torch.randn(4, 16)
    module = unitify.transform(Branching(), (x,), recipe="fp8")
    made = module.to_inference()
    assert torch.equal(made(x), module.eval()(x))
    assert {n for n, _ in made.named_parameters()} == {"first.bias", "second.bias"}
    with pytest.raises(UnitifyError, match="U104"):
        made(x.double())


def test_it_loads_its_own_state_and_no_other() -> None:
    model, tokens = net()
    module = unitify.transform(model, (tokens,), recipe="fp8", verify=False)
    made, other = module.to_inference(), module.to_inference()
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(tokens), made(tokens))
    for attempt in (made.original_state_dict, lambda: made.load_original_state_dict({})):
        with pytest.raises(UnitifyError, match="U603"):
            attempt()


def test_the_module_itself_is_unchanged() -> None:
    model, tokens = net()
    module = unitify.transform(model, (tokens,), recipe="fp8", verify=False)
    names = list(module.state_dict())
    module.to_inference()
    assert list(module.state_dict()) == names
    module(tokens).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("recipe", ["fp8", "fp8,simulate=true", "fp8-amax"])
def test_frozen_weights_are_codes_and_the_rest_trains(recipe: str) -> None:
    model, tokens = net()
    model.train().requires_grad_(False)
    model.first.requires_grad_()
    module = unitify.transform(model, (tokens,), recipe=recipe, verify=False)
    made = module.to_frozen()
    assert made.training
    runs = []
    for owner in (module, made):
        torch.manual_seed(0)
        out = owner(tokens)
        out.square().mean().backward()
        own = {n: p.grad for n, p in owner.named_parameters() if p.requires_grad}
        assert list(own) == ["first.weight", "first.bias"]
        runs.append([out, *own.values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    codes = {n for n, b in made.named_buffers() if b.dtype == E4M3.dtype}
    assert codes == {
        "twice.weight_e4m3",
        "weight_e4m3",
        "conv.weight_e4m3",
        "embedding.weight_e4m3",
    }
    assert memory(made) < memory(module)
    with pytest.raises(UnitifyError, match="U115"):
        made.double()(tokens)
