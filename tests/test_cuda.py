"""On a GPU: the same graphs, and FP8 matmuls where the device multiplies FP8.

Skipped, each test by name, where there is no GPU.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.runtime.scaled_mm import multiplies

fp8_linear = torch.ops.unitify.fp8_linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def has_fp8() -> bool:
    device = torch.device("cuda", 0)
    return torch.cuda.is_available() and multiplies(
        device, torch.float8_e4m3fn, torch.float8_e4m3fn
    )


needs_fp8 = pytest.mark.skipif(not has_fp8(), reason="no CUDA device of capability 8.9 or more")


class Block(nn.Module):
    """Linear layers of even and odd widths, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)
        self.odd = nn.Linear(64, 37)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.odd(x).square().mean()


def block() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Block().cuda(), torch.randn(3, 7, 64, device="cuda")


def results(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    loss = module(x)
    loss.backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def test_exact_on_the_device() -> None:
    model, x = block()
    module = unitify.transform(model, (x,))
    assert module.verification is not None
    assert module.verification.exact
    assert all(p.is_cuda for p in module.parameters())


@pytest.mark.parametrize("recipe", ["fp8,simulate=true", "fp8-amax", "fp16", "fp8,multiple=1"])
def test_a_device_gives_what_the_cpu_gives(recipe: str) -> None:
    """Rounding is the same everywhere; what lies between two casts differs in its last bits."""
    model, x = block()
    module = unitify.transform(model, (x,), recipe=recipe, verify=False)
    on_cpu = copy.deepcopy(module).cpu()
    for one, other in zip(results(module, x), results(on_cpu, x.cpu()), strict=True):
        error = float((one.cpu() - other).norm() / other.norm())
        assert error < 2.0**-6


@needs_fp8
@pytest.mark.parametrize("shape", [(16, 64, 32), (21, 64, 37), (5, 40, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_run_on_codes(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """All three matmuls, of widths that are padded, too: integers have exact sums."""
    m, k, n = shape
    torch.manual_seed(0)
    x, w = (torch.randint(-2, 3, s, device="cuda").to(dtype) for s in ((m, k), (n, k)))
    gradient = torch.randint(-1, 2, (m, n), device="cuda").to(dtype)
    x.requires_grad_(), w.requires_grad_()
    y = fp8_linear(x, w, None, "e4m3", "e5m2")
    y.backward(gradient)
    assert torch.equal(y, x @ w.t())
    assert torch.equal(x.grad, gradient @ w)
    assert torch.equal(w.grad, gradient.t() @ x)


@needs_fp8
def test_the_choices_name_the_device() -> None:
    model, x = block()
    module = unitify.transform(model, (x,), recipe="fp8,simulate=false,exclude=odd")
    assert {c.runs for c in module.casts if c.is_cast} == {"fp8"}


@needs_fp8
def test_compiled() -> None:
    model, x = block()
    module = unitify.transform(model, (x,), recipe="fp8,multiple=1", verify=False)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    for one, other in zip(results(module, x), results(compiled, x), strict=True):
        assert float((one - other).norm() / other.norm()) < 2.0**-6


@needs_fp8
def test_inference() -> None:
    model, x = block()
    module = unitify.transform(model.eval(), (x,), recipe="fp8", verify=False)
    made = module.to_inference()
    assert torch.equal(made(x), module(x))
    assert all(b.is_cuda for b in made.buffers())
