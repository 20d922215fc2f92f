"""Casts under Inductor round as they do in eager mode.

A compiler that fuses kernels may keep in float32 what a graph converts to 16 bits and back. What
shows it is the error against float32: with the rounding gone it is smaller by orders.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
from conversion import same
from slow import some_slow
from torch import Tensor, nn

import unitify
from unitify.formats.table import FORMATS
from unitify.runtime.cast import cast

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def numbers(dtype: torch.dtype) -> Tensor:
    """Every kind of number: normal and subnormal, beyond the range, ties, special values."""
    random = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (2**14,), generator=random).to(torch.int32)
    near = torch.randn(2**12, generator=random) * torch.logspace(-12, 6, 2**12)
    ties = torch.cat([f.values() for f in FORMATS.values() if f.bits <= 16 and f.bits > 7])
    ties = (ties[1:] + ties[:-1]) / 2
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    found = [anything.view(torch.float32), near, -ties.float(), ties.float(), special]
    return torch.cat(found).to(dtype)


#: Formats that are not left to `make slow`.
QUICK = {"e4m3", "e5m2", "bf16", "e2m1"}


def is_slow(dtype: torch.dtype) -> bool:
    return dtype != torch.float32


@pytest.mark.parametrize(
    "dtype",
    some_slow([torch.float32, torch.bfloat16, torch.float16, torch.float64], is_slow),
)
@pytest.mark.parametrize("name", some_slow(FORMATS, lambda n: n not in QUICK))
def test_every_format_rounds_as_in_eager_mode(name: str, dtype: torch.dtype) -> None:
    x = numbers(dtype)

    def casts(x: Tensor, y: Tensor) -> list[Tensor]:
        # Neighbors to be fused with, which are exact in every type.
        return [-cast(-x, name, name, 1, -2, False, False), -cast(-y, name, name, 1, -2)]

    def results(run: Callable[..., list[Tensor]]) -> list[Tensor]:
        operands = [x.clone().requires_grad_() for _ in range(2)]
        values = run(*operands)
        return [*values, *torch.autograd.grad(values, operands, [x.flip(0)] * 2)]

    compiled = torch.compile(casts, fullgraph=True)
    for found, expected in zip(results(compiled), results(casts), strict=True):
        assert same(found, expected)


def mlp() -> tuple[nn.Module, Tensor]:
    """What compilers and kernels do alike, to the last bit: no sums but those of products."""
    sizes = (32, 64), (64, 64), (64, 8)
    first, second, third = (nn.Linear(*size, bias=False) for size in sizes)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third), torch.randn(16, 32)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(self.norm(x)).chunk(3, dim=-1)
        return self.outer((q @ k.transpose(-1, -2) / 5).softmax(-1) @ v) + x


def attention() -> tuple[nn.Module, Tensor]:
    return Attention(), torch.randn(4, 8, 32)


def convolutions() -> tuple[nn.Module, Tensor]:
    first, last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2)
    layers = first, nn.BatchNorm2d(16), nn.SiLU(), last, nn.Flatten(), nn.Linear(144, 16)
    return nn.Sequential(*layers), torch.randn(4, 3, 8, 8)


MODELS = {"mlp": mlp, "attention": attention, "convolutions": convolutions}


def made(name: str, recipe: str | None) -> tuple[nn.Module, unitify.UnitScaledModule, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name]()
    module = unitify.transform(model, (x,), scales="measured", recipe=recipe, verify=False)
    return model, module, x


def step(module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """Output and gradients."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.tanh().square().sum().backward()
    found = {"output": y.detach(), "x": x.grad}
    found |= {name: p.grad.clone() for name, p in module.named_parameters()}
    return found


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize(
    "recipe",
    some_slow(
        ["bf16", "fp8", "fp16", "fp8,simulate=true", "fp8-ptq"],
        {"bf16", "fp16", "fp8-ptq"}.__contains__,
    ),
)
def test_a_compiled_step_is_bitwise_the_eager_one(recipe: str) -> None:
    _, module, x = made("mlp", recipe)
    expected = step(module, module, x)
    found = step(module, torch.compile(module, fullgraph=True), x)
    assert [name for name in expected if not same(expected[name], found[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["attention", "convolutions"])
def test_a_compiled_step_is_as_far_from_float32(name: str, recipe: str) -> None:
    model, module, x = made(name, recipe)
    true = step(model, model, x)
    eager = step(module, module, x)
    compiled = step(module, torch.compile(module, fullgraph=True), x)
    for place, exact in true.items():
        if error(torch.zeros_like(exact), exact) and exact.norm() > 1e-4:
            own, other = error(eager[place], exact), error(compiled[place], exact)
            # A fused kernel computes a little otherwise, and a rounded number is then a
            # neighbor; casts that were left out would be 30 000 times nearer.
            assert own / 2 < other < own * 2, place


def test_caches_on_disk_are_of_this_version() -> None:
    # Torch finds what it has compiled by the names of operators.
    torch.compile(lambda x: cast(x, "bf16", ""), fullgraph=True)(torch.randn(4))
    assert f"unitify {unitify.__version__}" in torch.compiler.config.cache_key_tag
