"""``unitify.optim``: twenty steps with the original's hyperparameters are the original's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from training import (
    ADAMW,
    STEPS,
    Pair,
    assert_same_parameters,
    fresh_pair,
    scaled_at_random,
    tokens,
    train,
)

import unitify
from unitify import optim
from unitify.optim import groups
from unitify.optim.optimizers import UNITS, OptimizerUnits, Units


@pytest.fixture
def pair() -> Pair:
    return fresh_pair()


def trained(pair: Pair, kind: type[Optimizer], **options: Any) -> None:
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
def test_twenty_steps_are_the_originals(pair: Pair, kind: Any, options: dict[str, Any]) -> None:
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


# -- groups -------------------------------------------------------------------------------


def test_groups_hold_every_parameter_once_with_its_name(pair: Pair) -> None:
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


def test_groups_of_the_users_own(pair: Pair) -> None:
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


def test_a_generator_of_parameters(pair: Pair) -> None:
    model, module = pair
    train(model, O.SGD(model.embedding.parameters(), lr=0.1))
    embedding: Iterator[Tensor] = module.embedding.parameters()
    train(module, O.SGD(optim.param_groups(module, O.SGD, params=[{"params": embedding}], lr=0.1)))
    assert_same_parameters(model, module)


def test_a_parameter_that_is_thawed_later(pair: Pair) -> None:
    model, module = pair
    plain = O.AdamW(list(model.parameters()), **ADAMW)
    own = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    for owner, optimizer in ((model, plain), (module, own)):
        train(owner, optimizer)
        owner.frozen.requires_grad_(True)
        train(owner, optimizer)
    assert_same_parameters(model, module)


def test_a_wrapped_module(pair: Pair) -> None:
    """DDP and compile wrap a module; its parameters are the same objects under longer names."""
    model, module = pair
    wrapped = nn.ModuleDict({"inner": module})
    train(model, O.AdamW(list(model.parameters()), **ADAMW))
    train(module, O.AdamW(optim.param_groups(wrapped, O.AdamW, **ADAMW)))
    assert_same_parameters(model, module)


def test_an_optimizer_saved_and_loaded(pair: Pair) -> None:
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


# -- other optimizers ---------------------------------------------------------------------


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


def test_units_of_an_optimizer_that_is_not_known(pair: Pair) -> None:
    model, module = pair
    units = OptimizerUnits({"lr": Units(-1, 0), "weight_decay": Units(1, 0)})
    options = {"lr": 0.01, "weight_decay": 0.1}
    train(model, Lion(list(model.parameters()), **options))
    train(module, Lion(optim.param_groups(module, Lion, units=units, **options)))
    assert_same_parameters(model, module)


def test_a_subclass_shares_the_row_of_its_base(pair: Pair) -> None:
    model, module = pair
    train(model, Named(list(model.parameters()), eps=1e-3))
    train(module, Named(optim.param_groups(module, Named, eps=1e-3)))
    assert_same_parameters(model, module)


@pytest.mark.parametrize("kind", [O.RAdam, O.Adafactor, O.LBFGS, Lion])
def test_an_optimizer_that_cannot_be_exact_is_refused(pair: Pair, kind: Any) -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(pair[1], kind, lr=0.1)
    assert caught.value.code == "U007"
    assert "AdamW" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(O.AdamW, {"learning_rate": 1.0}), (O.Adagrad, {"initial_accumulator_value": 0.1})],
)
def test_an_option_that_cannot_be_used_is_refused(pair: Pair, kind: Any, options: Any) -> None:
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(pair[1], kind, **options)
    assert caught.value.code == "U001"


def test_every_option_of_the_table_exists() -> None:
    for kind, row in UNITS.items():
        assert row.units.keys() <= groups._defaults(kind).keys(), kind
