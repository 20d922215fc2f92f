"""``scheme="unit"``: unit RMS by constants of the graph, true gradients, the pipeline as ever."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from slow import some_slow
from torch import Tensor, nn

import unitify
from unitify.capture.execution import run_captured
from unitify.checkpoint import folder
from unitify.diagnostics import UnitifyError
from unitify.measure.captured import measure
from unitify.reparametrization import Reparametrization

SAMPLES = 32


class Operation(nn.Module):
    """One operation on a linear layer's output, and a linear layer that takes its result."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 64) -> None:
        super().__init__()
        self.function = function
        self.into, self.out = nn.Linear(64, width), nn.LazyLinear(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.into(x)))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "elu": F.elu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "softplus": F.softplus, "mish": F.mish,
    "hardtanh": F.hardtanh, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "logsigmoid": F.logsigmoid, "sin": torch.sin, "cos": torch.cos, "square": torch.square,
    "abs": torch.abs, "erf": torch.erf, "softmax": lambda x: x.softmax(-1),
    "glu": lambda x: F.glu(x, -1),
    "sum": lambda x: x.unflatten(-1, (16, 4)).sum(-1),
    "mean": lambda x: x.unflatten(-1, (16, 4)).mean(-1),
    "layer_norm": lambda x: F.layer_norm(x, (64,)),
    "dropout": lambda x: F.dropout(x, 0.25, True),
}  # fmt: skip

#: 1/√E[f(x)²] by quadrature: numbers that Blake et al. 2023 and their library have, to 4 digits.
PUBLISHED: Mapping[str, float] = {
    "relu": 1.4142, "gelu": 1.5335, "silu": 1.6765, "tanh": 1.5925, "sigmoid": 1.8462,
    "leaky_relu": 1.3868, "elu": 1.2452, "softplus": 1.0419, "mish": 1.4868, "hardtanh": 1.3920,
    "hardswish": 1.7367, "hardsigmoid": 1.8978, "logsigmoid": 1.0419, "sin": 1.5209,
    "cos": 1.3273, "square": 0.5774, "erf": 1.4672, "sum": 4**-0.5, "mean": 4**0.5,
    "dropout": 0.75**0.5,
}  # fmt: skip


def scaled(model: nn.Module, *inputs: Tensor, **options: Any) -> unitify.UnitScaledModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unitify.transform(model, inputs, **options)


def constants(module: unitify.UnitScaledModule) -> Reparametrization:
    return module.scheme[""]


@cache
def single(name: str) -> unitify.UnitScaledModule:
    torch.manual_seed(0)
    model = Operation(FUNCTIONS[name])
    x = torch.randn(16, 64)
    model(x)
    return scaled(model, x, scheme=unitify.UnitScheme(), verify=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_multipliers_are_the_published_ones(name: str) -> None:
    outputs = constants(single(name)).outputs
    found = [m for value, m in outputs.items() if not value.startswith("linear")]
    expected = PUBLISHED[name]
    assert found == ([pytest.approx(expected, rel=2e-4)] if abs(expected - 1) > 0.05 else [])
    assert outputs["linear"] == pytest.approx(64**-0.5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_result_has_unit_rms(name: str) -> None:
    """Over draws of weights and inputs, the mean square is one within four standard errors."""
    module = single(name)
    squares: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(1)
    internal = constants(module).outputs
    names = {f"{value}_multiplied" for value in internal}

    def observe(node: Any, value: Any) -> None:
        if node.name in names:
            squares.setdefault(node.name, []).append(float(value.double().square().mean()))

    for _ in range(SAMPLES):
        drawn = {
            n: (p.dim() > 1) * torch.randn(p.shape, generator=generator)
            for n, p in module.capture.model.named_parameters()
        }
        x = torch.randn(16, 64, generator=generator)
        run_captured(module.capture, [x], drawn, observe)
    assert squares
    for value, held in squares.items():
        found = torch.tensor(held, dtype=torch.float64)
        error = float(found.std()) / math.sqrt(SAMPLES)
        # Multipliers within 5 % of one are left out.
        assert abs(float(found.mean()) - 1) < 4 * error + 0.1 * (name == "layer_norm"), value


@pytest.mark.parametrize(("kind", "taps"), [(nn.Conv1d, 3), (nn.Conv2d, 9)])
def test_convolutions(kind: Any, taps: int) -> None:
    model = nn.Sequential(kind(8, 16, 3, groups=2), nn.ReLU(), kind(16, 8, 1))
    size = [6] * (1 if kind is nn.Conv1d else 2)
    outputs = constants(scaled(model, torch.randn(2, 8, *size), scheme="unit")).outputs
    first, *_ = outputs.values()
    assert first == pytest.approx((4 * taps) ** -0.5)


def test_initialization() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 64, padding_idx=0), nn.LayerNorm(64), nn.Linear(64, 64))
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    given = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(1, 40, (4, 6))
    for init in ("normal", "normalize", "keep"):
        scheme = unitify.UnitScheme(init=init)
        module = scaled(model, tokens, scheme=scheme)
        weights = dict(module.capture.model.named_parameters())
        assert all(torch.equal(p, given[n]) for n, p in model.named_parameters())
        assert torch.equal(weights["1.weight"], torch.ones(64))
        assert torch.equal(weights["2.bias"], torch.zeros(64))
        direction = F.cosine_similarity(
            weights["2.weight"].flatten(), given["2.weight"].flatten(), 0
        )
        assert (float(direction) > 0.9999) == (init != "normal")
        if init == "keep":
            assert torch.equal(weights["2.weight"], given["2.weight"])
        else:
            mean_square = float(weights["2.weight"].square().mean())
            assert abs(mean_square - 1) < 4 * math.sqrt(2 / (64 * 64))
        assert torch.equal(weights["0.weight"][0], torch.zeros(64))
        measured = measure(module.capture)["linear_multiplied"].forward
        assert abs(measured**2 - 1) < 4 * math.sqrt(2 / (tokens.numel() * 64))


def test_multipliers_do_not_depend_on_what_the_model_holds() -> None:
    torch.manual_seed(0)
    made = []
    for training in (True, False):
        model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 4))
        model.train(training)
        made.append(constants(scaled(model, torch.randn(3, 8), scheme="unit")).outputs)
    assert made[0] == made[1]


# -- models whose gradients a rescaled backward pass gets wrong --------------------------------


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(32, 16), nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1])
        x = x + F.gelu(self.hidden(x))
        logits = F.linear(x, self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Reused(nn.Module):
    """One layer at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(F.relu(self.layer(x)))))


class Gated(nn.Module):
    """A gated unit before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


WRONG_ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "tied": (Tied, lambda: torch.randint(0, 32, (4, 9))),
    "reused": (Reused, lambda: torch.randn(8, 16)),
    "gated": (Gated, lambda: torch.randn(8, 16)),
}


@pytest.mark.parametrize("name", WRONG_ELSEWHERE)
@pytest.mark.parametrize("scheme", ["unit", "u-mup"])
def test_gradients_are_those_of_the_true_model(name: str, scheme: str) -> None:
    """To the last bit, and so of cosine one, with one ratio (a power of two) per parameter."""
    torch.manual_seed(0)
    build, inputs = WRONG_ELSEWHERE[name]
    x = inputs()
    module = scaled(build(), x, scheme=scheme)
    true = dict(module.capture.model.named_parameters())
    leaves = {n: p.detach().clone().requires_grad_() for n, p in true.items()}
    torch.func.functional_call(module.capture.model, leaves, (x,)).sum().backward()
    module(x).sum().backward()
    for parameter, stored in module.named_parameters():
        scale = module.plan.parameters[parameter]
        assert scale.fwd == 1.0
        assert torch.equal(stored.grad * scale.bwd, leaves[parameter].grad), parameter


# -- what the scheme leaves as it is -----------------------------------------------------------


class ByHand(nn.Module):
    """Norms, activations and a gated state written out: a multiplier inside would break them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.into, self.out, self.function = nn.Linear(16, 16), nn.Linear(16, 16), function

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.into(x)))


def layer_norm(x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + 1e-6)


def softmax(x: Tensor) -> Tensor:
    weights = (x - x.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


HAND_WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "layer_norm": (layer_norm, lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)),
    "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), F.gelu),
    "silu": (lambda x: x * torch.sigmoid(x), F.silu),
    "softmax": (softmax, lambda x: x.softmax(-1)),
}


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_what_is_written_by_hand_stays_whole(name: str) -> None:
    """Up to one factor, the function is what it would be as one operation."""
    results = []
    for function in HAND_WRITTEN[name]:
        torch.manual_seed(0)
        model = ByHand(function)
        x = torch.randn(8, 16)
        torch.manual_seed(1)
        module = scaled(model, x, scheme="unit")
        results.append(module(x).detach().flatten().double())
    assert float(F.cosine_similarity(*results, 0)) == pytest.approx(1.0, abs=1e-6)


class Highway(nn.Module):
    """A state that a gate moves towards a candidate, step by step, beside the input."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.state, self.out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in self.into(x).unbind(1):
            candidate, gate = (step + self.state(state)).chunk(2, -1)
            state = state + gate.sigmoid() * (candidate.tanh() - state)
            states.append(state)
        return self.out(x + torch.stack(states, 1))


def test_a_gated_state_is_no_stack_of_residual_sums() -> None:
    """Only the sum around the recurrence is weighed; a gate at one sets the state anew."""
    torch.manual_seed(0)
    module = scaled(Highway(), torch.randn(4, 5, 16), scheme="unit")
    made = constants(module)
    assert len(made.sums) == 1
    assert not [value for value in made.outputs if value.startswith(("sub", "mul"))]


def test_probabilities_stay_probabilities() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            p = torch.sigmoid(self.linear(x))
            return F.binary_cross_entropy(p, y), p

    module = scaled(Classifier(), torch.randn(6, 8), torch.rand(6, 4).round(), scheme="unit")
    assert "sigmoid" not in constants(module).outputs


# -- the pipeline behind it --------------------------------------------------------------------


MODELS = ["mlp", "residual_cnn", "gpt2", "experts", "stochastic_depth"]


@pytest.mark.parametrize("name", some_slow(MODELS, {"gpt2"}.__contains__))
def test_pipeline(name: str, tmp_path: Path) -> None:
    """Exact, RMS within an octave of one at multipliers, and the same module from its folder."""
    model, args, kwargs = zoo.build(name)
    module = scaled(model, *args, example_kwargs=kwargs, scheme="unit")
    assert module.verification is not None
    assert module.verification.exact
    rms: list[float] = []
    for part in module.parts.values():
        made = part.capture.reparametrization
        assert made is not None
        measured = measure(part.capture)
        rms += [measured[f"{value}_multiplied"].forward or 0.0 for value in made.outputs]
    assert 0.5 <= min(rms) < max(rms) <= 2
    folder.write(tmp_path / "module", module, {})
    again = unitify.load(tmp_path / "module", zoo.build(name)[0], args, kwargs)
    assert again.scheme == module.scheme
    assert again.plan == module.plan
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True)
    )
    assert str(again.graph) == str(module.graph)


def test_constants_of_another_model_are_refused() -> None:
    module = scaled(Gated(), torch.randn(8, 16), scheme="unit")
    with pytest.raises(UnitifyError) as caught:
        unitify.rebuild(
            nn.Sequential(nn.Conv1d(2, 2, 1)), module.state_dict(), module.plan,
            (torch.randn(1, 2, 4),), scheme=module.scheme,
        )  # fmt: skip
    assert caught.value.code == "U301"


def test_json_round_trip() -> None:
    made = constants(scaled(Tied(), torch.randint(0, 32, (4, 9)), scheme="u-mup"))
    assert Reparametrization.from_json(made.to_json()) == made


def test_in_place() -> None:
    """The model's own parameters are those that are trained."""
    model = Gated()
    parameters = list(model.parameters())
    module = scaled(model, torch.randn(8, 16), scheme="unit", inplace=True)
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert torch.equal(parameters[1].detach(), torch.zeros(32))


def test_preserve_is_the_default() -> None:
    model = nn.Linear(4, 4)
    module = scaled(model, torch.randn(2, 4))
    assert module.scheme == {}
    assert module.capture.model is model


@pytest.mark.parametrize("recipe", ["fp8", "fp16"])
def test_casts(recipe: str) -> None:
    torch.manual_seed(0)
    module = scaled(Gated(), torch.randn(64, 16), scheme="unit", recipe=recipe + ",multiple=1")
    true = module.capture.model
    x = torch.randn(64, 16)
    error = (module(x) - true(x)).square().mean().sqrt() / true(x).square().mean().sqrt()
    assert float(error) < {"fp8": 0.1, "fp16": 2e-3}[recipe]


def test_rebase() -> None:
    """A module of a scheme is moved to other scales like any other."""
    torch.manual_seed(0)
    module = scaled(Gated(), torch.randn(64, 16), scheme="unit")
    before = module(torch.ones(4, 16)).detach()
    unitify.rebase_(module, batches=[(8 * torch.randn(64, 16),)])
    assert torch.equal(module(torch.ones(4, 16)).detach(), before)
    assert module.plan.values["linear"].fwd == 1.0
