"""``torch.compile`` makes one graph of a module, and no third one for other sizes."""

from __future__ import annotations

import copy
import functools

import pytest
import test_compiled_casts as compiled_casts
import torch
import torch._inductor.config
from conversion import same
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import unitify

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@functools.cache
def transformed(recipe: str | None) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 32)
    return unitify.transform(
        compiled_casts.Attention(), (x,), scales="measured", recipe=recipe, verify=False
    )


def made(recipe: str | None, is_inference: bool) -> nn.Module:
    """A copy of its own for each use."""
    module = copy.deepcopy(transformed(recipe))
    return module.to_inference() if is_inference else module


def run(module: nn.Module, compiled: nn.Module, x: Tensor) -> None:
    """Compiled and eager calls agree; a training module's with their gradients."""
    found, expected = compiled(x), module(x)
    assert same(found, expected)
    if expected.requires_grad:
        parameters = list(module.parameters())
        pairs = zip(
            *(torch.autograd.grad(y.sum(), parameters) for y in (found, expected)), strict=True
        )
        assert all(same(a, b) for a, b in pairs)


@pytest.mark.parametrize("is_inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("recipe", [None, "fp8", "fp8-ptq", "fp16", "bf16"])
def test_one_graph_for_all_sizes(recipe: str | None, is_inference: bool) -> None:
    module = made(recipe, is_inference)
    for dynamic, graphs in ((True, 1), (None, 2)):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend=counter)
        for batch in (4, 6, 3, 9, 5):
            run(module, compiled, torch.randn(batch, 8, 32))
        assert counter.frame_count == graphs


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp8", "bf16"])
def test_inductor_with_free_sizes(recipe: str) -> None:
    _, module, _ = compiled_casts.made("mlp", recipe)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for batch in (16, 24):
        x = torch.randn(batch, 32)
        found, expected = (compiled_casts.step(module, run, x) for run in (compiled, module))
        assert [name for name in expected if not same(expected[name], found[name])] == []
