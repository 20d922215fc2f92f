"""Gradients are those of the model at any scale of the loss, however narrow their casts are."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.arrival import ARRIVE, unwatched
from unitify.rulebook.schema import operation_name
from unitify.runtime.arrive import factor_of, size_of


class Language(nn.Module):
    """Tied weights, attention, a residual sum; hidden states are an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 32)
        self.norm = nn.LayerNorm(32)
        self.query_key_value, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.unused = nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embedding(tokens)
        q, k, v = self.query_key_value(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return F.linear(x, self.embedding.weight), x, self.unused(x.detach())


TOKENS = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1))


def cross_entropy(output: Any) -> Tensor:
    return F.cross_entropy(output[0].flatten(0, 1), TOKENS.roll(1, 1).flatten())


def both(output: Any) -> Tensor:
    return cross_entropy(output) + 2.0**-12 * output[1].square().mean()


def hidden(output: Any) -> Tensor:
    return output[1].square().mean()


@functools.cache
def transformed(recipe: str | None, **options: Any) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    return unitify.transform(
        Language(), (TOKENS,), recipe=recipe, scales="measured", verify=False, **options
    )


def made(recipe: str | None = "fp8", **options: Any) -> unitify.UnitScaledModule:
    """A copy of its own for each use."""
    return copy.deepcopy(transformed(recipe, **options))


@pytest.fixture(scope="module")
def fp8() -> unitify.UnitScaledModule:
    return made()


def gradients(
    module: nn.Module, loss: Callable[[Any], Tensor], scale: float = 1.0
) -> dict[str, Tensor]:
    module.zero_grad()
    (loss(module(TOKENS)) * scale).backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def assert_scaled(found: dict[str, Tensor], base: dict[str, Tensor], scale: float) -> None:
    assert found.keys() == base.keys()
    for name in base:
        assert torch.equal(found[name], base[name] * scale), name


RECIPES = ("fp8", "fp8,simulate=true", "fp8-fnuz", "fp8-mixed", "fp8-ptq", "fp16", "bf16")


@pytest.mark.parametrize("loss", [cross_entropy, both, hidden])
@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_at_any_scale(recipe: str, loss: Callable[[Any], Tensor]) -> None:
    module = made(recipe)
    base = gradients(module, loss)
    for exponent in (-40, -27, -13, -1, 1, 16, 40):
        scale = math.ldexp(1.0, exponent)
        assert_scaled(gradients(module, loss, scale), base, scale)


def test_a_plan_for_one_loss_serves_another() -> None:
    """Whatever the plan assumes of the loss, gradients are those with none assumed."""
    modules = made(), made(loss_fn=cross_entropy), made(loss_fn=lambda o: 2.0**-20 * both(o))
    plain, *others = (
        {n: g * m.plan.parameters[n].bwd for n, g in gradients(m, cross_entropy).items()}
        for m in modules
    )
    assert all(m.plan != modules[0].plan for m in modules[1:])
    for found in others:
        assert_scaled(found, plain, 1.0)


@pytest.mark.parametrize("power", [0, 12, 16, 20])
def test_a_grad_scaler(power: int) -> None:
    module = made(loss_fn=cross_entropy)
    base = gradients(module, cross_entropy)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**power)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    module.zero_grad()
    scaler.scale(cross_entropy(module(TOKENS))).backward()
    scaler.unscale_(optimizer)
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert_scaled(found, base, 1.0)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(fp8: unitify.UnitScaledModule, bad: float) -> None:
    found = gradients(fp8, lambda out: (out[0].flatten()[:2] * torch.tensor([bad, 1.0])).sum())
    assert not found["out.weight"].isfinite().all()


def test_zero_stays_zero(fp8: unitify.UnitScaledModule) -> None:
    assert all(not g.any() for g in gradients(fp8, cross_entropy, 0.0).values())


def test_a_second_backward_pass_over_a_graph(fp8: unitify.UnitScaledModule) -> None:
    losses = (cross_entropy, hidden, cross_entropy)
    alone = [gradients(fp8, loss, 2.0**-30) for loss in losses]
    output = fp8(TOKENS)
    for loss, expected in zip(losses, alone, strict=True):
        fp8.zero_grad()
        (loss(output) * 2.0**-30).backward(retain_graph=True)
        found = {n: p.grad for n, p in fp8.named_parameters() if p.grad is not None}
        assert_scaled(found, expected, 1.0)


def test_no_gradient_stays_no_gradient(fp8: unitify.UnitScaledModule) -> None:
    assert "unused.weight" not in gradients(fp8, cross_entropy)
    frozen = copy.deepcopy(fp8).requires_grad_(False)
    assert not any(out.requires_grad for out in frozen(TOKENS))
    frozen.unused.weight.requires_grad_()
    assert [out.requires_grad for out in frozen(TOKENS)] == [False, False, True]


def test_gradients_are_ready_in_the_order_of_the_original(fp8: unitify.UnitScaledModule) -> None:
    """Their reduction over processes may begin as early as it did."""

    def order(module: nn.Module) -> list[str]:
        seen: list[str] = []
        for name, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
        cross_entropy(module(TOKENS)).backward()
        # Weight and bias are one operation's.
        return list(dict.fromkeys(name.split(".")[0] for name in seen))

    torch.manual_seed(0)
    assert order(copy.deepcopy(fp8)) == order(Language())


@pytest.mark.parametrize("recipe", [None, "bf16", "fp8-plain", "fp8-amax", "fp8,backward=bf16"])
def test_nothing_is_watched_where_no_scale_decides(recipe: str | None) -> None:
    graph = made(recipe).graph
    assert all("watched" not in operation_name(n) for n in graph.nodes)
    assert ARRIVE not in {n.target for n in graph.nodes}


def test_the_graph_without_watching_is_the_graph_before(fp8: unitify.UnitScaledModule) -> None:
    graph = unwatched(fp8.graph)
    assert ARRIVE in {n.target for n in fp8.graph.nodes}
    assert ARRIVE not in {n.target for n in graph.nodes}
    names = [n.name for n in fp8.graph.nodes]
    assert len(names) == len(set(names))
    assert {n.name for n in graph.nodes} <= set(names)
    assert unwatched(graph) is graph


def test_inference_watches_nothing(fp8: unitify.UnitScaledModule) -> None:
    inference = fp8.to_inference()
    assert ARRIVE not in {n.target for n in inference.graph.nodes}
    for found, expected in zip(inference(TOKENS), fp8(TOKENS), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("recipe", ["fp8", "fp16"])
def test_compiled_and_exported(recipe: str) -> None:
    torch._dynamo.reset()
    module = made(recipe)
    base = gradients(module, cross_entropy, 2.0**-30)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    module.zero_grad()
    (cross_entropy(compiled(TOKENS)) * 2.0**-30).backward()
    # Compiled, what no loss is made of has a gradient of zero, as in the original.
    found = {n: p.grad for n, p in module.named_parameters() if not n.startswith("unused")}
    assert_scaled(found, base, 1.0)
    exported = torch.export.export(module, (TOKENS,), strict=False)
    for program in (exported, exported.run_decompositions({})):
        again = program.module()
        assert_scaled(gradients(again, cross_entropy, 2.0**-30), base, 1.0)


@pytest.mark.slow
def test_inductor_keeps_the_scale() -> None:
    torch._dynamo.reset()
    module = made()
    compiled = torch.compile(module, fullgraph=True)
    found = []
    for scale in (1.0, 2.0**-30, 2.0**20):
        module.zero_grad()
        (cross_entropy(compiled(TOKENS)) * scale).backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert_scaled(found[1], found[0], 2.0**-30)
    assert_scaled(found[2], found[0], 2.0**20)


@pytest.mark.parametrize("unit", [1.0, 2.0**-7])
@pytest.mark.parametrize("exponent", [-90, -30, 0, 30, 90])
def test_sizes_and_factors(unit: float, exponent: int) -> None:
    g = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    base, found = (size_of(g * 2.0**e, unit) for e in (0, exponent))
    assert float(found) == float(base) * 2.0**exponent
    assert 0.5 < float(base * unit / g.square().mean().sqrt()) < 4.0
    assert float(factor_of(found)) == 1.0 / float(found)
    assert float(factor_of(found * 1.5)) == 1.0 / float(found)
    assert (
        float(size_of(torch.full((10,), 3 * 2.0**exponent), unit)) == 2.0 ** (exponent + 2) / unit
    )


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_no_factor_for_what_has_no_size(value: float) -> None:
    assert float(factor_of(size_of(torch.tensor([value, 0.0]), 1.0))) == 1.0
