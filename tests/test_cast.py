"""Casts in the graph: where they are, what they do to values and gradients; the baselines."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conversion import parameter_scales
from torch import Tensor, fx, nn

import unitify
from unitify.formats.table import E4M3, E5M2, FORMATS, FP16, Format, quantize
from unitify.plan.bands import TOLERANCE
from unitify.plan.scale_plan import Weights
from unitify.recipe.recipe import RECIPES
from unitify.rulebook.schema import operation_name
from unitify.runtime.cast import amax_factor, cast

# -- the operator -----------------------------------------------------------------------


def both_ways(x: Tensor, gradient: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = cast(leaf, *arguments)
    (back,) = torch.autograd.grad(y, leaf, gradient)
    return y.detach(), back


@pytest.mark.parametrize("exponent", [0, -5, 3])
def test_value_and_gradient_are_rounded_each_to_its_format(exponent: int) -> None:
    x, gradient = torch.randn(64), torch.randn(64)
    value, back = both_ways(x, gradient, "e4m3", "e5m2", exponent, -exponent)
    factor = 2.0**exponent
    assert torch.equal(value, quantize(x / factor, E4M3) * factor)
    assert torch.equal(back, quantize(gradient * factor, E5M2) / factor)
    value, back = both_ways(x, gradient, "", "e5m2")
    assert torch.equal(value, x)
    value, back = both_ways(x, gradient, "e4m3", "")
    assert torch.equal(back, gradient)


@pytest.mark.parametrize("format", [E4M3, E5M2])
@pytest.mark.parametrize("exponent", [-40, -3, 0, 17])
def test_amax_brings_the_largest_element_just_in_range(format: Format, exponent: int) -> None:
    """Perez et al. 2023: the power of two at which the largest element is not yet saturated."""
    x = torch.randn(500) * 2.0**exponent
    factor = float(amax_factor(x, format))
    assert math.frexp(factor)[0] == 0.5
    largest = float(x.abs().max()) * factor
    assert format.largest / 2 < largest <= format.largest
    assert torch.equal(cast(x, format.name, "", 0, 0, True), quantize(x * factor, format) / factor)


@pytest.mark.parametrize("x", [torch.zeros(3), torch.empty(0), torch.full((2,), torch.nan)])
def test_amax_of_nothing_is_one(x: Tensor) -> None:
    assert float(amax_factor(x, E4M3)) == 1.0


def test_no_gradient_stays_none() -> None:
    leaf = torch.randn(3, requires_grad=True)
    torch.stack([leaf.detach() * 2, cast(leaf, "e4m3", "e5m2").detach()]).sum()
    assert leaf.grad is None


# -- around a contraction --------------------------------------------------------------------


def test_a_linear_layer_by_hand() -> None:
    """Operands and the gradient of the result, rounded as they are stored; bias untouched."""
    torch.manual_seed(0)
    model = nn.Linear(32, 16)
    with torch.no_grad():
        model.weight.mul_(2.0**-4)
    x, gradient = torch.randn(48, 32), torch.randn(48, 16) * 2.0**-7
    module = unitify.transform(
        model, (x,), recipe="fp8,simulate=true", loss_fn=lambda y: (y * gradient).sum()
    )
    plan = module.plan
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.backward(gradient)

    w, s = parameter_scales(module)["weight"], plan.unit("linear")
    assert w.fwd < 1.0
    assert s.bwd < 1.0
    own = quantize(model.weight / w.fwd, E4M3) * w.fwd
    rounded = quantize(x, E4M3)
    expected = F.linear(rounded, own, model.bias)
    assert torch.equal(y, expected)
    arriving = quantize(gradient / s.bwd, E5M2) * s.bwd
    assert torch.equal(leaf.grad, arriving @ own)
    weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
    assert torch.equal(weight.grad, arriving.t() @ rounded)
    assert torch.equal(bias.grad, arriving.sum(0))


class Small(nn.Module):
    """A pre-norm block with a convolution, and weights that FP8 holds badly as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.mix = nn.Conv1d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 32)
        with torch.no_grad():
            self.up.weight.mul_(2.0**-8)
            self.down.weight.mul_(2.0**8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten().roll(-1))


def small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Small(), torch.randint(0, 32, (4, 16))


def gradients(module: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """True gradients of every parameter."""
    module.zero_grad()
    module(tokens).backward()
    plan = getattr(module, "plan", None)
    return {
        name: parameter.grad * (plan.parameters[name].bwd if plan else 1.0)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def test_a_shared_operand_is_cast_once() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(x)

    x = torch.randn(4, 16)
    module = unitify.transform(Two(), (x,), recipe="fp8-plain,simulate=true")
    casts = [n for n in module.graph.nodes if operation_name(n) == "unitify.cast.default"]
    assert len(casts) == 3 + 2
    leaf = x.clone().requires_grad_()
    module(leaf).sum().backward()
    assert leaf.grad is not None


# -- everything that is stored ------------------------------------------------------------


def stored(module: unitify.UnitScaledModule, tokens: Tensor) -> dict[str, Tensor]:
    """The result of every cast node and the gradient that it hands back, by its name."""
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            result = super().run_node(n)
            if operation_name(n).startswith("unitify.cast."):
                found[n.name] = (result[0] if isinstance(result, tuple) else result).detach()
                source = self.env[n.all_input_nodes[0]]
                if source.requires_grad:
                    source.register_hook(lambda g: found.__setitem__(f"gradient {n.name}", g))
            return result

    loss = Watch(module).run(tokens)
    loss.backward()
    return found


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp16-plain"])
def test_every_stored_value_is_a_number_of_the_format(name: str) -> None:
    model, tokens = small()
    module = unitify.transform(
        model, (tokens,), recipe=name, scales="measured", weights="stored", verify=False
    )
    format = RECIPES[name].forward
    found = stored(module, tokens)
    values = [n for n in found if not n.startswith("gradient")]
    assert {f"gradient {n}" for n in values} == found.keys() - set(values)
    for value in found.values():
        assert torch.equal(quantize(value, format), value)
    assert len(values) == sum(c.is_cast for c in module.casts)


def test_master_weights_keep_float32() -> None:
    model, tokens = small()
    module = unitify.transform(model, (tokens,), recipe="fp16", verify=False)
    weight = module.get_parameter("head.weight")
    true = weight.detach() * module.plan.parameters["head.weight"].fwd
    assert torch.equal(true, model.head.weight)
    assert not torch.equal(quantize(weight, FP16), weight)


def test_what_is_cast_is_what_is_stored() -> None:
    """Where a result has a rescale of its own, the cast stands behind it, at unit scale."""
    model, tokens = small()
    for parameter in model.parameters():
        parameter.data.mul_(2.0**9)
    module = unitify.transform(
        model, (tokens,), recipe="fp16", scales="measured", weights="stored", verify=False
    )
    found = {n: v for n, v in stored(module, tokens).items() if not n.startswith("gradient")}
    rms = {n: float(v.double().square().mean().sqrt()) for n, v in found.items() if v.any()}
    assert len(rms) >= len(found) - 1
    assert {n: r for n, r in rms.items() if abs(math.log2(r)) > TOLERANCE} == {}


def test_fp16_needs_no_loss_scale_where_plain_fp16_does() -> None:
    """Gradients far below 2^-24: gone in plain FP16, kept with a loss scale or at unit scale."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)), torch.randn(8, 16)

    def loss_fn(y: Tensor) -> Tensor:
        return (y * 2.0**-30).square().sum() * 2.0**30

    def found(recipe: str) -> Tensor:
        module = unitify.transform(model, (x,), recipe=recipe, loss_fn=loss_fn)
        loss_fn(module(x)).backward()
        scale = module.plan.parameters["0.weight"].bwd
        return module.get_parameter("0.weight").grad * scale

    loss_fn(model(x)).backward()
    true = model[0].weight.grad

    def error(recipe: str) -> float:
        return float((found(recipe) - true).norm() / true.norm())

    assert error("fp16-plain") == 1.0
    assert error("fp16-loss-scaled,loss_scale=16777216") < 0.002
    assert error("fp16") < 0.002


# -- baselines ------------------------------------------------------------------------------


def test_without_a_scale_the_graph_is_the_original() -> None:
    """Plain casting is casting the captured graph: nothing is rescaled, gradients are true."""
    model, tokens = small()
    module = unitify.transform(model, (tokens,), recipe="fp8-plain,include=nothing")
    assert not any(operation_name(n) == "unitify.rescale.default" for n in module.graph.nodes)
    assert [d.code for d in module.diagnostics] == ["U403", "U409"]
    expected = gradients(model, tokens)
    for name, gradient in gradients(module, tokens).items():
        assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize("scale", [2.0**-9, 2.0**11])
@pytest.mark.parametrize("weights", ["true", "stored"])
def test_static_loss_scaling_is_exact(scale: float, weights: Weights) -> None:
    """An assignment of scales as any other: bitwise, with every stored gradient scaled up."""
    model, tokens = small()
    recipe = f"fp16-loss-scaled,loss_scale={scale},include=nothing"
    module = unitify.transform(model, (tokens,), recipe=recipe, weights=weights)
    assert module.verification is not None
    assert module.verification.exact
    module(tokens).backward()
    model(tokens).backward()
    for name, parameter in module.named_parameters():
        factor = scale if weights == "stored" else 1.0
        assert torch.equal(parameter.grad, model.get_parameter(name).grad * factor)


def rounded_by(way: Callable[[Tensor, Format], Tensor], model: nn.Module, x: Tensor) -> Tensor:
    first, second = model[0], model[2]
    hidden = F.relu(F.linear(way(x, E4M3), way(first.weight, E4M3), first.bias))
    return F.linear(way(hidden, E4M3), way(second.weight, E4M3), second.bias)


def by_amax(x: Tensor, format: Format) -> Tensor:
    factor = 2.0 ** math.floor(math.log2(format.largest / float(x.detach().abs().max())))
    return quantize(x * factor, format) / factor


BASELINES: dict[str, Callable[[Tensor, Format], Tensor]] = {
    "fp8-plain": quantize,
    "fp8-amax": by_amax,
    "fp8-cscale": lambda x, format: quantize(x * 2.0**4, format) / 2.0**4,
    "fp8-cscale,scale=0.0009765625": lambda x, format: quantize(x * 2.0**10, format) / 2.0**10,
}


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_by_hand(name: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), torch.randn(16, 16)
    module = unitify.transform(model, (x,), recipe=f"{name},simulate=true")
    assert torch.equal(module(x), rounded_by(BASELINES[name], model, x))


def test_unit_scale_is_nearer_than_a_plain_cast() -> None:
    model, tokens = small()
    expected = gradients(model, tokens)

    def worst(recipe: str) -> float:
        module = unitify.transform(model, (tokens,), recipe=recipe, scales="measured", verify=False)
        found = gradients(module, tokens)
        return max(float((found[n] - g).norm() / g.norm()) for n, g in expected.items())

    assert worst("fp8") < worst("fp8-plain") / 4


def test_dynamic_loss_scaling_is_torchs_own() -> None:
    """An overflow of FP16 is seen: the step is skipped and the scale halved; training goes on."""
    model, tokens = small()
    module = unitify.transform(model, (tokens,), recipe="fp16-plain", verify=False)
    optimizer = torch.optim.SGD(unitify.optim.param_groups(module, torch.optim.SGD, lr=0.01))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=100)
    before = copy.deepcopy(module.state_dict())
    scales, losses = [], []
    for _ in range(40):
        optimizer.zero_grad()
        loss = module(tokens)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if not scales:
            after = module.state_dict()
            assert all(torch.equal(before[n], after[n]) for n in before)
        scales.append(scaler.get_scale())
        losses.append(float(loss))
    assert scales[0] == 2.0**29
    assert scales[-1] == scales[-10] < 2.0**24
    assert losses[-1] < losses[0]


# -- parts, copies, folders -----------------------------------------------------------------


class Branching(nn.Module):
    """Python decides what runs, so that only its submodules are captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.second = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) if y.sum() > -1e9 else y


def test_patterns_reach_into_islands() -> None:
    x = torch.randn(4, 16)
    module = unitify.transform(Branching(), (x,), recipe="fp8,exclude=first.2")
    choices = {c.value: c for c in module.casts if c.is_contraction}
    assert {n: c.is_cast for n, c in choices.items()} == {
        "first/linear": True, "first/linear_1": False, "second/linear": True,
    }  # fmt: skip
    again = copy.deepcopy(module)
    assert again.casts == module.casts
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize("recipe", ["fp8,exclude=head,multiple=1", "fp16"])
def test_a_recipe_survives_the_disk(tmp_path: Path, recipe: str) -> None:
    from unitify.checkpoint import folder

    model, tokens = small()
    module = unitify.transform(model, (tokens,), recipe=recipe)
    folder.write(tmp_path / "out", module, {})
    again = unitify.load(tmp_path / "out", Small(), (tokens,))
    assert again.recipe == module.recipe
    assert again.casts == module.casts
    assert torch.equal(again(tokens), module(tokens))


def test_formats_that_a_recipe_may_use() -> None:
    """Any format of the table, one for each direction."""
    x = torch.randn(16, 16)
    for format in FORMATS.values():
        recipe = f"fp8-plain,forward={format.name},backward=bf16,simulate=true"
        module = unitify.transform(nn.Linear(16, 16), (x,), recipe=recipe)
        weight = quantize(module.weight, format)
        assert torch.equal(module(x), F.linear(quantize(x, format), weight, module.bias))
