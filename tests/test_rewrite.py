"""The rewriter: what it inserts where, and the order of sums that it keeps."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from conversion import RULES
from strategies import random_plan
from torch import Tensor, fx, nn

import unitify
from unitify.capture.whole import capture
from unitify.module.assembly import build, unscaled
from unitify.module.unit_scaled import UnitScaledModule
from unitify.part import Part
from unitify.plan.scale_plan import CARRIERS, Scale, ScalePlan
from unitify.rewrite import rewrite
from unitify.verifying.running import verify_by_running

RESCALE = torch.ops.unitify.rescale.default


def scaled(model: nn.Module, *args: Tensor, **scales: Scale) -> UnitScaledModule:
    """The model with these scales for its values, one for all others."""
    captured = capture(model, args, {})
    values = {n.name: scales.get(n.name, Scale()) for n in captured.graph.nodes}
    parameters = {
        name: next((values[n.name] for n in captured.graph.nodes if n.target == first), Scale())
        for name, first in captured.aliases.items()
    }
    chosen = ScalePlan(values, parameters)
    return build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))


def chain(node: fx.Node) -> list[tuple[float, float]]:
    """Factors of the rescales that lead to a node's first operand, the first one first."""
    found = []
    operand = node.args[0]
    while isinstance(operand, fx.Node) and operand.target is RESCALE:
        found.append((operand.args[1], operand.args[2]))
        operand = operand.args[0]
    return found[::-1]


def node(module: UnitScaledModule, name: str) -> fx.Node:
    return next(n for n in module.graph.nodes if n.name == name)


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(torch.relu(x), -1)


def test_the_equation_by_hand() -> None:
    """relu is homogeneous (c = fwd(x) = 1), softmax is restored (c = 1, r = fwd(relu))."""
    module = scaled(Chain(), torch.randn(3, 4), relu=Scale(4.0, 8.0), softmax=Scale(0.5, 2.0))
    # x: r = 1, backward = c·r·bwd(relu) / (fwd(x)·bwd(x))
    assert chain(node(module, "relu")) == [(1.0, 8.0)]
    # relu: c / fwd(relu); softmax's operand: r = 4, backward = 1·4·2 / (4·8)
    assert chain(node(module, "softmax")) == [(0.25, 1.0), (4.0, 0.25)]
    # softmax: c / fwd = 2; output: fwd, 1 / bwd
    assert chain_of_output(module) == [(2.0, 1.0), (0.5, 0.5)]


def chain_of_output(module: UnitScaledModule) -> list[tuple[float, float]]:
    output = node(module, "output")
    (result,) = output.args[0]
    found = []
    while result.target is RESCALE:
        found.append((result.args[1], result.args[2]))
        result = result.args[0]
    return found[::-1]


def test_scales_of_one_insert_nothing() -> None:
    module = scaled(Chain(), torch.randn(3, 4))
    assert not [n for n in module.graph.nodes if n.target is RESCALE]


def test_every_original_operation_keeps_its_name() -> None:
    class Reserved(nn.Module):
        def forward(self, input: Tensor, lambda_: Tensor) -> Tensor:
            return torch.relu(input) + lambda_

    module = scaled(Reserved(), torch.randn(3), torch.randn(3), relu=Scale(2.0, 2.0))
    names = [n.name for n in module.graph.nodes]
    assert [n for n in names if not n.startswith("rescale")] == [
        n.name for n in module.capture.graph.nodes
    ]


# -- the order of sums --------------------------------------------------------------------


class RepeatedOperand(nn.Module):
    """x · x between two other uses of x."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return (h * 3 + h * h + torch.cat([h, torch.sin(h), h]).sum() + h.exp()).sum()


class RepeatedInComposite(nn.Module):
    """A product of one value with itself, which autograd takes apart last operand first."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return (torch.matmul(h, h) + h.cos() + F.scaled_dot_product_attention(h, h, h)).sum()


class PreNorm(nn.Module):
    """``rms_norm`` hands two contributions back, beside the residual connection's own."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(6) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.silu(layer(norm(x)))
        return x.square().sum()


class Cells(nn.Module):
    """A cell's state is used inside it more than once, and its weights at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0]
        total = h.sum()
        for step in range(3):
            h = self.cell(x[:, step], h)
            total = total + h.sin().sum()
        return total


class Distances(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return (F.cosine_similarity(h, h.exp(), -1) + h.sum(-1) + h.diff(dim=-1).sum(-1)).sum()


SUMS = [RepeatedOperand, RepeatedInComposite, PreNorm, Cells, Distances]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SUMS)
def test_gradients_are_summed_in_the_originals_order(
    kind: type[nn.Module], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, x = kind().to(dtype), torch.randn(4, 6, 6, dtype=dtype)
    captured = capture(model, (x,), {})
    # Not the model: of cells the recording sums over all steps, the model within each.
    original = unscaled(model, {"": captured})
    for seed in range(5):
        generator = random.Random(seed)
        carrier = CARRIERS[seed % len(CARRIERS)]
        draw = lambda _, g=generator: g.randint(-6, 6)  # noqa: E731
        chosen = random_plan(draw, captured, RULES, carrier=carrier)
        module = build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))
        found = verify_by_running(original, module, (x,), {})
        assert found.exact, [str(d) for d in found.differences]


def test_only_composites_that_hide_a_sum_are_opened() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.RMSNorm(6)
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, beside: str = "") -> Tensor:
            h = self.layer(x)
            if beside == "complex":
                return self.norm(h) + torch.fft.fft(h).abs()
            return self.norm(h) + h if beside else self.norm(h)

    x = torch.randn(4, 6)
    assert "rms_norm" in str(capture(Norm(), (x,), {}).graph)
    for beside in ("residual", "complex"):
        assert "rms_norm" not in str(capture(Norm(), (x, beside), {}).graph)


# -- gradients of gradients ---------------------------------------------------------------


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h * h + torch.sigmoid(h)).sum()


def test_gradients_of_gradients_are_the_originals() -> None:
    """A gradient penalty: the norm of the input's gradient, differentiated again.

    To rounding alone: what a backward pass saved adds to the gradient of an operation's result
    before its rescale, so that these sums have another order.
    """
    torch.manual_seed(0)
    model, x = Smooth().double(), torch.randn(5, 6, dtype=torch.float64)
    captured = capture(model, (x,), {})
    generator = random.Random(0)
    chosen = random_plan(lambda _: generator.randint(-6, 6), captured, RULES)
    module = build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))
    assert sum(n.target is RESCALE for n in module.graph.nodes) > 10

    def second(owner: nn.Module) -> list[Tensor]:
        inputs = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(owner(inputs), inputs, create_graph=True)
        targets = [inputs, *owner.parameters()]
        return list(torch.autograd.grad(first.square().sum(), targets, allow_unused=True))

    bwd = [1.0, *(chosen.parameters[name].bwd for name, _ in model.named_parameters())]
    for a, b, factor in zip(second(model), second(module), bwd, strict=True):
        if a is None:
            assert b is None
        else:
            largest = float((a - b * factor).abs().max() / a.abs().max())
            assert largest <= 16 * torch.finfo(a.dtype).eps


# -- numbers ------------------------------------------------------------------------------


def test_a_number_that_is_a_size_is_scaled_in_the_graph() -> None:
    class BySize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) + x.shape[0]

    module = scaled(BySize(), torch.randn(3, 4), tanh=Scale(8.0, 2.0), add=Scale(4.0, 0.5))
    for rows in (3, 5):
        x = torch.randn(rows, 4)
        assert torch.equal(module(x), torch.tanh(x) + rows)


def test_roots_of_odd_powers_of_two() -> None:
    class Roots(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = x.exp()
            return y.sqrt(), y.rsqrt(), y**0.5

    for exponent in (-3, -2, 0, 1, 7):
        scale = Scale.of_exponents(exponent, -exponent)
        model, x = Roots(), torch.randn(3, 4)
        module = scaled(model, x, exp=scale, sqrt=Scale(4.0, 2.0), rsqrt=Scale(2.0, 8.0))
        assert verify_by_running(model, module, (x,), {}).exact, exponent


def test_one_result_of_several_has_a_scale_of_its_own() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first, second = torch.tanh(x).chunk(2, -1)
            return first * 2, second.exp()

    scales = {"tanh": Scale(4.0, 0.5), "chunk": Scale(4.0, 2.0), "getitem": Scale(0.5, 8.0)}
    model, x = Parts(), torch.randn(3, 4)
    module = scaled(model, x, **scales)
    assert verify_by_running(model, module, (x,), {}).exact


def test_integers_among_the_results_of_several() -> None:
    """They leave no law: the others are restored, and leave the operation at true scale."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y, places = torch.broadcast_tensors(
                self.linear(x).unsqueeze(1), torch.arange(3).view(1, 3, 1)
            )
            return y.gather(2, places)

    torch.manual_seed(0)
    module = unitify.transform(Net(), (torch.randn(4, 8),))
    assert module.verification is not None
    assert module.verification.exact
    assert module.plan.values["broadcast_tensors"].fwd == 1.0
