"""Derivatives of every order and kind: ``torch.func``, forward mode, gradients of gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import unitify
from unitify.formats.table import FORMATS
from unitify.runtime.cast import Rounding, cast, watched_cast
from unitify.runtime.rescale import rescale

fp8_linear = torch.ops.unitify.fp8_linear

Function = Callable[[Tensor], Tensor]


def dual(f: Function) -> Function:
    """The directional derivative along x itself, by torch's dual numbers."""

    def run(x: Tensor) -> Tensor:
        with torch.autograd.forward_ad.dual_level():
            made = f(torch.autograd.forward_ad.make_dual(x, x.clone()))
            tangent = torch.autograd.forward_ad.unpack_dual(made).tangent
            assert tangent is not None
            return tangent

    return run


def penalty(f: Function) -> Function:
    """The gradient of the norm of a gradient."""

    def run(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(f(x), x, create_graph=True)
        loss = (g.norm(dim=1) - 1).square().mean() + f(x)
        return torch.autograd.grad(loss, x)[0]

    return run


#: What is done to a function from [rows, columns] to a number.
TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "grad": grad,
    "vmap": lambda f: lambda x: vmap(lambda row: f(row[None]))(x),
    "vmap along another dimension": lambda f: (
        lambda x: vmap(lambda c: f(c), in_dims=1)(x.unsqueeze(1))
    ),
    "per-sample gradients": lambda f: lambda x: vmap(grad(lambda row: f(row[None])))(x),
    "gradient of a vmap": lambda f: grad(lambda x: vmap(lambda r: f(r[None]))(x).square().sum()),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x.cos(),))[1],
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.ones(()))[0],
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "autograd's hessian": lambda f: lambda x: torch.autograd.functional.hessian(f, x),
    "autograd's hessian, vectorized": lambda f: (
        lambda x: torch.autograd.functional.hessian(f, x, vectorize=True)
    ),
    "autograd's hvp": lambda f: lambda x: torch.autograd.functional.hvp(f, x, x)[1],
    "dual numbers": dual,
    "gradient penalty": penalty,
}

# -- each operator, against torch's own way of saying the same ------------------------------------


class Rounded(torch.autograd.Function):
    """A cast in torch's own terms: its mechanism for transforms, which shares nothing with ours."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: str, backward: str) -> Tensor:
        return Rounding(FORMATS[forward])(x) if forward else x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.backward_format = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return Rounded.apply(gradients[0], ctx.backward_format, ""), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].clone()


WEIGHT = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
BIAS = torch.randn(16, generator=torch.Generator().manual_seed(2))


def rounded_linear(x: Tensor) -> Tensor:
    weight = Rounded.apply(WEIGHT, "e4m3", "")
    made = F.linear(Rounded.apply(x, "e4m3", ""), weight, BIAS)
    return Rounded.apply(made, "", "e5m2")


OPERATORS: dict[str, tuple[Function, Function]] = {
    "rescale": (lambda x: rescale(x, 4.0, 4.0), lambda x: x * 4.0),
    "rescale of gradients": (lambda x: rescale(rescale(x, 1.0, 8.0), 1.0, 0.125), lambda x: x * 1),
    "cast": (lambda x: cast(x, "e4m3", "e5m2"), lambda x: Rounded.apply(x, "e4m3", "e5m2")),
    "cast of values": (lambda x: cast(x, "e4m3", ""), lambda x: Rounded.apply(x, "e4m3", "")),
    "cast of gradients": (lambda x: cast(x, "", "e5m2"), lambda x: Rounded.apply(x, "", "e5m2")),
    "watched cast": (
        lambda x: watched_cast(x, "e4m3", "e5m2")[0],
        lambda x: Rounded.apply(x, "e4m3", "e5m2"),
    ),
    "fp8_linear": (lambda x: fp8_linear(x, WEIGHT, BIAS, "e4m3", "e5m2"), rounded_linear),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_under_a_transform(operator: str, transform: str) -> None:
    ours, theirs = OPERATORS[operator]
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))

    def number(run: Function) -> Function:
        return lambda x: run(x.sin()).tanh().square().sum()

    expected = TRANSFORMS[transform](number(theirs))(x)
    found = TRANSFORMS[transform](number(ours))(x)
    if operator == "fp8_linear":
        # The same products, which FP8 units may sum in another order.
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)
    assert expected.any()


def test_each_of_a_batch_has_a_largest_element_of_its_own() -> None:
    x = torch.randn(5, 8) * torch.logspace(-6, 6, 5)[:, None]
    found = vmap(lambda row: cast(row, "e4m3", "e5m2", 0, 0, True))(x)
    expected = torch.stack([cast(row, "e4m3", "e5m2", 0, 0, True) for row in x])
    assert torch.equal(found, expected)


def test_a_batch_of_weights() -> None:
    x, weights = torch.randn(3, 16), torch.randn(4, 16, 16)
    found = vmap(lambda w: fp8_linear(x, w, None, "e4m3", "e5m2"))(weights)
    expected = torch.stack([fp8_linear(x, w, None, "e4m3", "e5m2") for w in weights])
    torch.testing.assert_close(found, expected)


# -- transformed models ---------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 16))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inner(x).chunk(3, dim=-1)
        weights = (q @ k.transpose(-1, -2) / 4).softmax(-1)
        return self.outer(weights @ v) + x


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 16, 3, padding=1), nn.Conv1d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.unsqueeze(-2)).tanh()).mean(-1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "attention": Attention,
    "convolutions": Convolutions,
}


def loss(model: nn.Module) -> Function:
    return lambda x: model(x).tanh().square().mean()


@pytest.fixture(scope="module", params=MODELS)
def model_of(request: pytest.FixtureRequest) -> Callable[[str | None], tuple[nn.Module, nn.Module]]:
    """The original and the module of a recipe, each made once."""
    torch.manual_seed(0)
    model = MODELS[request.param]()
    made: dict[str | None, tuple[nn.Module, nn.Module]] = {}

    def get(recipe: str | None, dtype: torch.dtype = torch.float32) -> Any:
        if (recipe, dtype) not in made:
            original = copy.deepcopy(model).to(dtype)
            example = (torch.randn(3, 16, dtype=dtype),)
            module = unitify.transform(original, example, scales="measured", recipe=recipe)
            made[recipe, dtype] = original, module
        return made[recipe, dtype]

    return get


#: A second backward pass sums what reaches one value by several ways in the order in which the
#: nodes of the first one were made: rescales between them may change it.
SUMMED_IN_ANOTHER_ORDER = (
    "reverse over reverse",
    "autograd's hessian",
    "autograd's hessian, vectorized",
    "autograd's hvp",
    "gradient penalty",
)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_module_is_bitwise_its_original_under_a_transform(model_of: Any, transform: str) -> None:
    original, module = model_of(None)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(3))
    found, expected = (TRANSFORMS[transform](loss(m))(x) for m in (module, original))
    if isinstance(original, Attention) and transform in SUMMED_IN_ANOTHER_ORDER:
        # Not further from the truth than the original itself is.
        true = TRANSFORMS[transform](loss(copy.deepcopy(original).double()))(x.double())
        error = (expected - true).abs().max()
        assert error > 0
        assert (found - true).abs().max() <= 2 * error
    else:
        assert torch.equal(found, expected)


RECIPES = ("fp8", "fp8,simulate=true", "fp8-ptq", "fp8-mixed", "fp8-amax", "fp16", "bf16")


@pytest.mark.parametrize("recipe", RECIPES)
def test_per_sample_gradients_are_those_of_each_sample(model_of: Any, recipe: str) -> None:
    # In float64, where the order of a sum hardly ever decides how a number is rounded.
    _, module = model_of(recipe, torch.float64)
    x = torch.randn(5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def of_one(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(module, parameters, (row[None],)).tanh().square().mean()

    found = vmap(grad(of_one), (None, 0))(parameters, x)
    for index, row in enumerate(x):
        module.zero_grad()
        loss(module)(row[None]).backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(found[name][index], parameter.grad)


@pytest.mark.parametrize("recipe", RECIPES)
def test_jacobians_are_made_of_gradients(model_of: Any, recipe: str) -> None:
    _, module = model_of(recipe, torch.float64)
    x = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = jacrev(module)(x)
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(16)).tolist():
        (row,) = torch.autograd.grad(y[tuple(place)], leaf, retain_graph=True)
        torch.testing.assert_close(found[tuple(place)], row)


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_batch_norm_in_evaluation_writes_nothing(transform: str) -> None:
    """``torch.func`` refuses a write into a buffer that it was not given."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GELU())
    x = torch.randn(4, 8)
    module = unitify.transform(model, (x,))
    run = TRANSFORMS[transform]
    assert torch.equal(run(loss(module.eval()))(x), run(loss(model.eval()))(x))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_fp8_products_are_differentiated_as_simulated_ones(model_of: Any, transform: str) -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(6))
    found, expected = (
        TRANSFORMS[transform](loss(model_of(recipe)[1]))(x)
        for recipe in ("fp8", "fp8,simulate=true")
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("recipe", [None, "fp8", "fp16"])
def test_compiled_per_sample_gradients(recipe: str | None) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = mlp()
    module = unitify.transform(model, (torch.randn(3, 16),), scales="measured", recipe=recipe)
    run = vmap(grad(lambda row: loss(module)(row[None])))
    x = torch.randn(4, 16)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), run(x))


class AsksForSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(x.shape[0], 2, 4) + torch.zeros(x.shape[0], 2, 4)


def test_vmap_of_a_graph_that_asks_for_sizes() -> None:
    model, x = AsksForSizes(), torch.randn(2, 3, 8)
    module = unitify.transform(model, x[0])
    assert torch.equal(torch.vmap(module)(x), torch.vmap(model)(x))
