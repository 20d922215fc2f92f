"""Where an island ends: sums, backward passes in Python, what is kept of a call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from islands import Branch, assert_same
from torch import Tensor, nn

import unitify
import unitify.optim


class Norm(nn.Module):
    """Takes its input twice: as it is, or as what an operation hands back unchanged."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = nn.Linear(32, 32), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "composite":
            return self.linear(F.rms_norm(x, (32,)))
        y = x.to(torch.float32) if self.kind == "same" else x
        return self.linear(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))


class ResidualNorm(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(32, 32), Norm(kind)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * 16
        z = self.norm(y)
        return z if z.sum().item() > 1e9 else z + y


@pytest.mark.parametrize("kind", ["plain", "same", "composite"])
def test_sums_at_the_boundary_keep_their_order(kind: str) -> None:
    """An island's input gets gradients from within and from the code around it."""
    torch.manual_seed(0)
    model, x = ResidualNorm(kind), torch.randn(64, 32)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"first", "norm"}
    assert module.verification is not None
    assert_same(model, module, (x,))


class Recomputed(torch.autograd.Function):
    """Runs a module again in its backward pass, which adds to the weights' gradients itself."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None]:
        assert ctx.module.training
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(gradient)
        return None, x.grad


class Reversible(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return Recomputed.apply(self.inside, self.before(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_backward_pass_in_python(training: bool) -> None:
    """Its gradients are compared too; where it refuses to run there are none."""
    torch.manual_seed(0)
    model, x = Reversible().train(training), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U109"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"before", "inside"}
    assert module.verification is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    if training:
        assert_same(model, module, (x,))
        assert all(parameter.grad is not None for parameter in module.parameters())


class WithWeight(torch.autograd.Function):
    """Its backward pass takes a weight of the module, whose call it is not."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        return module(x).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient @ ctx.module.weight


def test_a_weight_that_a_backward_pass_uses_stays_true() -> None:
    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inside = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return WithWeight.apply(self.inside, self.before(x))

    torch.manual_seed(0)
    model, x = Uses(), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U109"):
        module = unitify.transform(model, (x,), scales="measured", weights="stored")
    assert set(module.parts) == {"before", "inside"}
    assert module.plan.parameters["inside.weight"] == unitify.Scale()
    assert module.plan.parameters["before.weight"] != unitify.Scale()
    assert_same(model, module, (x,))


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.largest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.largest = float(x.shape[0])
        return y


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keeps, self.last = Keeps(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.keeps(x)
        y = y / self.keeps.largest
        return self.last(y) if y.sum().item() < 1e9 else y


def test_what_a_module_keeps_of_its_call_is_kept() -> None:
    torch.manual_seed(0)
    model, x = Reads(), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x,), scales="measured")
    assert set(module.parts) == {"keeps.linear", "last"}
    assert "its call changes largest" in str(module.diagnostics)
    assert model.keeps.largest == 0.0
    assert_same(model, module, (x,))
    assert_same(model, module, (torch.randn(7, 8),))


class OwnSeed(nn.Module):
    """No two runs are the same, whatever the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(torch.seed() % 2**60)
        y = self.other(x)
        x = self.linear(x)
        return (F.dropout(x) if x.sum().item() < 1e9 else x), y


def test_what_is_drawn_anew_cannot_be_compared() -> None:
    torch.manual_seed(0)
    model, x = OwnSeed(), torch.randn(64, 8)
    with pytest.raises(unitify.UnitifyError, match="U110") as raised:
        unitify.transform(model, (x,))
    assert "output 0" in str(raised.value)
    module = unitify.transform(model, (x,), verify=False)
    differing = {d.name for d in unitify.verify(model, module, (x,)).differences}
    mode = "the example in train mode"
    assert {f"output 0, {mode}", f"gradient of linear.weight, {mode}"} <= differing
    assert not {f"output 1, {mode}", f"gradient of other.weight, {mode}"} & differing


class Caching(Branch):
    """Returns a cache when it is asked for one, as Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> dict[str, Any]:
        found = super().forward(x, shift)
        return {**found, "cache": x} if self.config.use_cache else found


def test_a_cache_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = Caching(), torch.randn(4, 8)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x,))
    assert "U108" in {d.code for d in module.diagnostics}
    assert module.verification is not None
    assert set(module(x)) == {"y"}
    assert model.config.use_cache


class Unusable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_nothing_to_capture() -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        unitify.transform(Unusable(), (torch.randn(3),))
    assert caught.value.code == "U102"
