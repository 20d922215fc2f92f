"""``unitify::rescale``: both factors wherever PyTorch takes a graph; memory layouts kept."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, library, nn

import unitify
from unitify.runtime.layout import scaled
from unitify.runtime.rescale import rescale

RESCALE = torch.ops.unitify.rescale.default


def both_factors(run: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """What ``run`` multiplies a value and its gradient by."""
    x = torch.tensor([3.0, 5.0], requires_grad=True)
    y = run(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return float(y[0].detach() / 3), float(gradient[0])


class Rescaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return rescale(x, 4.0, 0.5)


def test_the_two_factors_are_independent() -> None:
    assert both_factors(Rescaled()) == (4.0, 0.5)


def test_both_factors_survive_export() -> None:
    exported = torch.export.export(Rescaled(), (torch.randn(2),), strict=False)
    assert both_factors(exported.module()) == (4.0, 0.5)
    assert both_factors(exported.run_decompositions().module()) == (4.0, 0.5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_both_factors_survive_compilation(backend: str) -> None:
    torch._dynamo.reset()
    assert both_factors(torch.compile(Rescaled(), backend=backend, fullgraph=True)) == (4.0, 0.5)


@pytest.mark.parametrize("forward", [1.0, 2.0])
@pytest.mark.parametrize(
    "x",
    [torch.randn(3, 4), torch.randn(4, 3).t(), torch.randn(2, 8)[:, 1:7:2]],
    ids=["dense", "transposed", "strided"],
)
def test_the_operator_keeps_pytorchs_contract(x: Tensor, forward: float) -> None:
    x = x.detach().requires_grad_()
    results = library.opcheck(RESCALE, (x, forward, 0.5))
    assert set(results.values()) == {"SUCCESS"}


def test_no_gradient_stays_no_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    rescaled, other = rescale(x, 2.0, 2.0), x * 2
    unused = torch.autograd.grad(other.sum(), [x, rescaled], allow_unused=True)
    assert unused[1] is None


def test_a_gradient_of_a_gradient_takes_the_forward_factor() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    y = rescale(x, 4.0, 0.5)
    g = torch.tensor(1.0, requires_grad=True)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    assert float(first.detach()) == 0.5
    assert float(torch.autograd.grad(first, g)[0]) == 4.0


# -- memory layout ------------------------------------------------------------------------

BASE = torch.arange(1.0, 4097.0)


def view(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Tensor:
    return BASE.as_strided(size, stride, offset)


LAYOUTS = {
    "contiguous": view((3, 4), (4, 1)),
    "scalar": view((), ()),
    "empty": view((0, 4), (4, 1)),
    "empty with gaps": view((3, 0, 2), (8, 2, 1)),
    "transposed": view((4, 3), (1, 4)),
    "channels last": view((2, 3, 4, 5), (60, 1, 15, 3)),
    "gaps": view((3, 4), (8, 1)),
    "gaps within": view((3, 4), (8, 2)),
    "transposed with gaps": view((4, 3), (1, 8)),
    "expanded": view((3, 4), (0, 1)),
    "expanded with gaps": view((3, 5, 4), (16, 0, 2)),
    "expanded scalar": view((3, 4), (0, 0)),
    "windows": view((5, 3), (1, 1)),
    "windows with gaps": view((4, 3, 2), (2, 1, 16)),
    "misaligned": view((3, 4), (4, 1), 1),
    "misaligned with gaps": view((3, 4), (8, 1), 7),
    "misaligned windows": view((5, 3), (1, 1), 3),
    "misaligned and expanded": view((2, 3, 4), (4, 0, 1), 5),
    "aligned later": view((3, 4), (4, 1), 64),
    "size one with a strange stride": view((3, 1, 4), (4, 100, 1)),
}


def address(x: Tensor) -> int:
    return x.data_ptr() % 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_scaled_tensor_keeps_its_layout(name: str, dtype: torch.dtype) -> None:
    layout = LAYOUTS[name]
    span = BASE.to(dtype)
    x = span.as_strided(layout.size(), layout.stride(), layout.storage_offset())
    y = scaled(x, 0.5)
    assert y.dtype == dtype
    assert y.size() == x.size()
    assert y.stride() == x.stride()
    assert torch.equal(y, x * 0.5)
    assert x.numel() == 0 or address(y) == (address(x) - span.data_ptr()) % 64
    if x.numel():
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gradient_keeps_its_layout(name: str) -> None:
    gradient = LAYOUTS[name]
    x = torch.zeros(gradient.size(), requires_grad=True)
    seen: list[Tensor] = []
    y = rescale(x, 1.0, 0.25)
    x.register_hook(seen.append)
    torch.autograd.backward(y, gradient)
    assert seen[0].stride() == gradient.stride()
    assert torch.equal(seen[0], gradient * 0.25)


def test_a_sparse_gradient_stays_sparse() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    rescaled = rescale(table.weight, 2.0, 4.0)
    nn.functional.embedding(torch.tensor([1, 1, 4]), rescaled, sparse=True).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert table.weight.grad.to_dense()[:, 0].tolist() == [0.0, 8.0, 0.0, 0.0, 4.0]


def test_special_values_are_kept() -> None:
    x = torch.tensor([-0.0, math.inf, -math.inf, math.nan])
    y = rescale(x, 8.0, 1.0)
    assert str(y) == str(x)
    assert str(rescale(x, 1.0, 2.0)) == str(x)


# -- Inductor -----------------------------------------------------------------------------

_COMPILE = """
import sys, torch
if {before}:
    torch.compile(lambda x: x * 2)(torch.randn(3))
import unitify
if not {before}:
    assert not any(m.startswith("torch._inductor") for m in sys.modules), "imported with unitify"
from torch import nn
model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
x = torch.randn(4, 8)
module = unitify.transform(model, (x,), weights="stored")
assert "rescale" in str(module.graph)
from torch._inductor.utils import run_and_get_code
compiled = torch.compile(module)
_, code = run_and_get_code(lambda: compiled(x).sum().backward())
assert len(code) == 2, "a forward and a backward graph"
assert "ops.unitify" not in "".join(code), "rescale was left a call of its own"
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True], ids=["first", "after another compilation"])
def test_inductor_fuses_rescales(before: bool) -> None:
    script = _COMPILE.format(before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_transformed_module_is_bitwise_itself_under_aot_eager() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
    x = torch.randn(6, 8)
    module = unitify.transform(model, (x,), scales="measured")

    def results(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        y = run(inputs)
        return [y, *torch.autograd.grad(y.square().sum(), [inputs, *module.parameters()])]

    expected, found = results(module), results(torch.compile(module, backend="aot_eager"))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_export_of_a_transformed_module_keeps_its_gradients() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    x = torch.randn(6, 8)
    module = unitify.transform(model, (x,), scales="measured")
    exported = torch.export.export(nn.Sequential(module), (x,), strict=False).module()
    assert torch.equal(module(x), exported(x))
    for run in (module, exported):
        run(x).square().sum().backward()
    found = {name.removeprefix("0."): p.grad for name, p in exported.named_parameters()}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, found[name]), name
