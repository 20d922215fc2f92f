"""``unitify.optim``: twenty steps with the original's hyperparameters are the original's."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion import RULES
from strategies import random_plan
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

import unitify
from unitify import optim
from unitify.capture import capture
from unitify.optimizers import UNITS, OptimizerUnits, Units
from unitify.rewrite import rewrite
from unitify.transform import build

STEPS = 20


class Tied(nn.Module):
    """An embedding that is the head, too; a frozen layer; a parameter without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + F.gelu(self.hidden(self.norm(self.frozen(x))))
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten().roll(-1))


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(seed))


def scaled_at_random(model: nn.Module, *args: Any) -> unitify.UnitScaledModule:
    """Every parameter at a scale of its own, in both directions."""
    captured = capture(model, args, {})
    generator = random.Random(5)
    chosen = random_plan(lambda _: generator.randint(-6, 6), captured, RULES)
    return build(captured, rewrite(captured, chosen, RULES), chosen)


@pytest.fixture(scope="module")
def pristine() -> tuple[nn.Module, unitify.UnitScaledModule]:
    torch.manual_seed(0)
    model = Tied()
    return model, scaled_at_random(model, tokens(0))


@pytest.fixture
def pair(pristine: Any) -> tuple[nn.Module, unitify.UnitScaledModule]:
    model, module = pristine
    return copy.deepcopy(model), copy.deepcopy(module)


def assert_same_parameters(model: nn.Module, module: unitify.UnitScaledModule) -> None:
    stored = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        true = stored[name].detach() * module.plan.parameters[name].fwd
        assert torch.equal(true, parameter.detach()), name


Clip = Callable[[nn.Module], Any]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    clip: Clip = lambda _: None,
    scheduler: Any = None,
    accumulate: int = 1,
) -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(accumulate):
            model(tokens(step * accumulate + part)).backward()
        clip(model)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def trained(
    pair: tuple[nn.Module, unitify.UnitScaledModule], kind: type[Optimizer], **options: Any
) -> None:
    """Both of ``pair`` trained, and compared."""
    model, module = pair
    train(model, kind(list(model.parameters()), **options))
    train(module, kind(optim.param_groups(module, kind, **options)))
    assert_same_parameters(model, module)


O = torch.optim  # noqa: E741
CASES: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (O.SGD, {"lr": 0.1}),
    (O.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (O.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (O.SGD, {"lr": 1e-3, "momentum": 0.9, "dampening": 0.3, "maximize": True}),
    (O.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "foreach": True}),
    (O.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "fused": True}),
    (O.Adam, {"lr": 0.01}),
    (O.Adam, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3}),
    (O.Adam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (O.Adam, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True, "betas": (0.5, 0.9)}),
    (O.AdamW, {}),
    (O.AdamW, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4}),
    (O.AdamW, {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True}),
    (O.AdamW, {"lr": 0.01, "weight_decay": 0.1, "foreach": True}),
    (O.AdamW, {"lr": 0.01, "weight_decay": 0.1, "foreach": False}),
    (O.AdamW, {"lr": 0.01, "weight_decay": 0.1, "fused": True}),
    (O.AdamW, {"lr": torch.tensor(0.01), "weight_decay": 0.1, "foreach": False}),
    (O.NAdam, {"lr": 0.01, "weight_decay": 0.1}),
    (O.NAdam, {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (O.Adamax, {"lr": 0.01, "weight_decay": 0.1}),
    (O.RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
    (O.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True, "eps": 1e-3}),
    (O.Adagrad, {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1}),
    (O.Adagrad, {"lr": 0.1, "fused": True}),
    (O.Adadelta, {"lr": 1.0, "weight_decay": 0.1}),
    (O.Adadelta, {"lr": 1.0, "rho": 0.5, "eps": 1e-3, "foreach": True}),
    (O.ASGD, {"lr": 0.1, "lambd": 1e-2, "weight_decay": 0.1, "t0": 5}),
    (O.Rprop, {"lr": 0.01, "step_sizes": (1e-4, 0.02)}),
]


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{kind.__name__}-{options}" for kind, options in CASES]
)
def test_twenty_steps_are_the_originals(pair: Any, kind: Any, options: dict[str, Any]) -> None:
    trained(pair, kind, **options)


def test_every_row_of_the_table_is_tested() -> None:
    elsewhere = {O.Muon, O.SparseAdam}
    assert {kind for kind, _ in CASES} == UNITS.keys() - elsewhere


def test_muon() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))
    module = scaled_at_random(model, torch.randn(5, 6))
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    for owner, optimizer in (
        (model, O.Muon(list(model.parameters()), **options)),
        (module, O.Muon(optim.param_groups(module, O.Muon, **options))),
    ):
        for step in range(STEPS):
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            owner(x).square().sum().backward()
            optimizer.step()
    assert_same_parameters(model, module)


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 4, sparse=True), nn.Tanh())
    module = scaled_at_random(model, tokens(0))
    plain = O.SparseAdam(list(model.parameters()), lr=0.1, eps=1e-4)
    own = O.SparseAdam(optim.param_groups(module, O.SparseAdam, lr=0.1, eps=1e-4))
    for owner, optimizer in ((model, plain), (module, own)):
        for step in range(STEPS):
            optimizer.zero_grad()
            owner(tokens(step)).square().sum().backward()
            optimizer.step()
    assert dict(module.named_parameters())["0.weight"].grad.is_sparse
    assert_same_parameters(model, module)


# -- clipping -----------------------------------------------------------------------------

ADAMW = {"lr": 0.01, "weight_decay": 0.1}


def backward(*owners: nn.Module) -> None:
    for owner in owners:
        owner(tokens(1)).backward()


def assert_same_gradients(model: nn.Module, module: unitify.UnitScaledModule) -> None:
    stored = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert stored[name].grad is None
        else:
            true = stored[name].grad * module.plan.parameters[name].bwd
            assert torch.equal(true, parameter.grad), name


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, 0.5, float("inf"), 0.0])
@pytest.mark.parametrize("max_norm", [0.05, 1e3])
def test_clipping_by_norm(pair: Any, norm_type: float, max_norm: float) -> None:
    model, module = pair
    backward(model, module)
    expected = nn.utils.clip_grad_norm_(list(model.parameters()), max_norm, norm_type)
    found = optim.clip_grad_norm_(module, max_norm, norm_type)
    assert torch.equal(expected, found)
    assert_same_gradients(model, module)


def test_clipping_by_value(pair: Any) -> None:
    model, module = pair
    backward(model, module)
    nn.utils.clip_grad_value_(list(model.parameters()), 0.02)
    optim.clip_grad_value_(module, 0.02)
    assert any(bool((p.grad.abs() == 0.02).any()) for p in model.parameters() if p.grad is not None)
    assert_same_gradients(model, module)


def test_clipping_without_gradients(pair: Any) -> None:
    assert torch.equal(optim.clip_grad_norm_(pair[1], 1.0), torch.tensor(0.0))


def test_a_norm_that_is_not_finite(pair: Any) -> None:
    _, module = pair
    backward(module)
    next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("nan"))
    assert torch.isnan(optim.clip_grad_norm_(module, 1.0))
    with pytest.raises(RuntimeError, match="non-finite"):
        optim.clip_grad_norm_(module, 1.0, error_if_nonfinite=True)


def test_training_with_clipping_and_accumulation(pair: Any) -> None:
    model, module = pair
    train(
        model, O.AdamW(list(model.parameters()), **ADAMW), accumulate=3,
        clip=lambda owner: nn.utils.clip_grad_norm_(owner.parameters(), 0.1),
    )  # fmt: skip
    train(
        module, O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW)), accumulate=3,
        clip=lambda owner: optim.clip_grad_norm_(owner, 0.1),
    )  # fmt: skip
    assert_same_parameters(model, module)


# -- learning-rate schedulers -------------------------------------------------------------

MULTIPLYING: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, 0.3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=10),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
}


def schedule(pair: Any, plain: Callable[[Optimizer], Any], own: Callable[[Optimizer], Any]) -> None:
    model, module = pair
    optimizer = O.AdamW(list(model.parameters()), **ADAMW)
    train(model, optimizer, scheduler=plain(optimizer))
    optimizer = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    train(module, optimizer, scheduler=own(optimizer))


@pytest.mark.parametrize("name", MULTIPLYING)
def test_a_scheduler_that_multiplies(pair: Any, name: str) -> None:
    schedule(pair, MULTIPLYING[name], MULTIPLYING[name])
    assert_same_parameters(*pair)


def test_a_scheduler_of_absolute_rates(pair: Any) -> None:
    rates = optim.learning_rates

    def cycle(optimizer: Optimizer, most: Any) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, most, total_steps=STEPS + 1)

    schedule(pair, lambda o: cycle(o, 0.05), lambda o: cycle(o, rates(o, 0.05)))
    assert_same_parameters(*pair)


def test_one_absolute_rate_for_all_groups_is_another_training(pair: Any) -> None:
    """What the documentation warns of: ``eta_min`` is one number, the groups' units differ."""

    def cosine(optimizer: Optimizer) -> Any:
        return lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=5e-3)

    schedule(pair, cosine, cosine)
    with pytest.raises(AssertionError):
        assert_same_parameters(*pair)


# -- groups -------------------------------------------------------------------------------


def test_groups_hold_every_parameter_once_with_its_name(pair: Any) -> None:
    _, module = pair
    groups = optim.param_groups(module, O.AdamW, **ADAMW)
    found = {
        name: parameter
        for group in groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    assert found.keys() == dict(module.named_parameters()).keys()
    assert all(found[name] is parameter for name, parameter in module.named_parameters())
    keys = [(g["lr"], g["eps"], g["weight_decay"]) for g in groups]
    assert len(set(keys)) == len(keys), "equal hyperparameters share a group"
    optimizer = O.AdamW(groups)
    assert optimizer.param_groups[0]["param_names"] == groups[0]["param_names"]


def test_groups_of_the_users_own(pair: Any) -> None:
    def groups(owner: nn.Module) -> list[dict[str, Any]]:
        decayed = [p for p in owner.parameters() if p.dim() > 1]
        rest = [(n, p) for n, p in owner.named_parameters() if p.dim() <= 1]
        return [
            {"params": decayed, "lr": 0.02, "tag": "matrices"},
            {"params": rest, "weight_decay": 0.0, "betas": (0.5, 0.9)},
        ]

    model, module = pair
    plain = [{**g, "params": [p[1] if isinstance(p, tuple) else p for p in g["params"]]}
             for g in groups(model)]  # fmt: skip
    train(model, O.AdamW(plain, **ADAMW))
    own = optim.param_groups(module, O.AdamW, params=groups(module), **ADAMW)
    assert {g.get("tag") for g in own} == {"matrices", None}
    train(module, O.AdamW(own))
    assert_same_parameters(model, module)


def test_a_generator_of_parameters(pair: Any) -> None:
    model, module = pair
    train(model, O.SGD(model.embedding.parameters(), lr=0.1))
    embedding: Iterator[Tensor] = module.embedding.parameters()
    train(module, O.SGD(optim.param_groups(module, O.SGD, params=[{"params": embedding}], lr=0.1)))
    assert_same_parameters(model, module)


def test_a_parameter_that_is_thawed_later(pair: Any) -> None:
    model, module = pair
    plain = O.AdamW(list(model.parameters()), **ADAMW)
    own = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    for owner, optimizer in ((model, plain), (module, own)):
        train(owner, optimizer)
        owner.frozen.requires_grad_(True)
        train(owner, optimizer)
    assert_same_parameters(model, module)


def test_a_wrapped_module(pair: Any) -> None:
    """DDP and compile wrap a module; its parameters are the same objects under longer names."""
    model, module = pair
    wrapped = nn.ModuleDict({"inner": module})
    train(model, O.AdamW(list(model.parameters()), **ADAMW))
    train(module, O.AdamW(optim.param_groups(wrapped, O.AdamW, **ADAMW)))
    assert_same_parameters(model, module)


def test_an_optimizer_saved_and_loaded(pair: Any) -> None:
    model, module = pair
    plain = O.AdamW(list(model.parameters()), **ADAMW)
    own = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    train(model, plain)
    train(model, plain)
    train(module, own)
    again = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    again.load_state_dict(own.state_dict())
    train(module, again)
    assert_same_parameters(model, module)


# -- other optimisers ---------------------------------------------------------------------


class Lion(Optimizer):
    """The sign of an average of gradients; decoupled decay."""

    def __init__(self, params: Any, lr: float = 1e-3, beta: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(p.grad, 1 - group["beta"])
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(average.sign(), alpha=-group["lr"])


class Named(torch.optim.AdamW):
    """A subclass that passes its options on."""

    def __init__(self, params: Any, *, warm: int = 0, **options: Any) -> None:
        super().__init__(params, **options)


def test_units_of_an_optimiser_that_is_not_known(pair: Any) -> None:
    model, module = pair
    units = OptimizerUnits({"lr": Units(-1, 0), "weight_decay": Units(1, 0)})
    options = {"lr": 0.01, "weight_decay": 0.1}
    train(model, Lion(list(model.parameters()), **options))
    train(module, Lion(optim.param_groups(module, Lion, units=units, **options)))
    assert_same_parameters(model, module)


def test_a_subclass_shares_the_row_of_its_base(pair: Any) -> None:
    model, module = pair
    train(model, Named(list(model.parameters()), eps=1e-3))
    train(module, Named(optim.param_groups(module, Named, eps=1e-3)))
    assert_same_parameters(model, module)


@pytest.mark.parametrize("kind", [O.RAdam, O.Adafactor, O.LBFGS, Lion])
def test_an_optimiser_that_cannot_be_exact_is_refused(pair: Any, kind: Any) -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(pair[1], kind, lr=0.1)
    assert caught.value.code == "U007"
    assert "AdamW" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(O.AdamW, {"learning_rate": 1.0}), (O.Adagrad, {"initial_accumulator_value": 0.1})],
)
def test_an_option_that_cannot_be_used_is_refused(pair: Any, kind: Any, options: Any) -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(pair[1], kind, **options)
    assert caught.value.code == "U001"


def test_every_option_of_the_table_exists() -> None:
    for kind, row in UNITS.items():
        assert row.units.keys() <= optim._defaults(kind).keys(), kind
