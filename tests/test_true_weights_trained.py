"""Training on true weights: plain optimizers, schedules and clipping take the original's steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import optim as O
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training import ADAMW, Pair, tokens, train
from true_weights import assert_same_state, at_any_scales, small

import unitify
from unitify import optim

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: O.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "ASGD": lambda p: O.ASGD(p, 0.1),
    "Adam": lambda p: O.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: O.AdamW(p, **ADAMW),
    "NAdam": lambda p: O.NAdam(p, 0.01),
    "RAdam": lambda p: O.RAdam(p, 0.01),
    "Adamax": lambda p: O.Adamax(p, 0.01),
    "RMSprop": lambda p: O.RMSprop(p, 0.01, centered=True, momentum=0.9),
    "Adagrad": lambda p: O.Adagrad(p, 0.01, initial_accumulator_value=0.1),
    "Adadelta": lambda p: O.Adadelta(p),
    "Rprop": lambda p: O.Rprop(p, 0.01),
    "Adafactor": lambda p: O.Adafactor(p, 0.01),
    "a decay rate of its own": lambda p: O.AdamW(
        [{"params": list(p)[:2], "weight_decay": 0.0}], lr=0.1, foreach=True
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_optimizer_takes_the_originals_steps(name: str, pair: Pair) -> None:
    for owner in pair:
        train(
            owner,
            OPTIMIZERS[name](owner.parameters()),
            clip=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.05),
            accumulate=2,
        )
    assert_same_state(*pair)


def test_lbfgs_takes_the_originals_steps(pair: Pair) -> None:
    for owner in pair:
        optimizer = O.LBFGS(owner.parameters(), max_iter=5, line_search_fn="strong_wolfe")

        def closure(owner: nn.Module = owner, optimizer: O.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = owner(tokens(1))
            loss.backward()
            return loss

        for _ in range(4):
            optimizer.step(closure)  # type: ignore[arg-type]
    assert_same_state(*pair)


SCHEDULES: dict[str, Callable[[O.Optimizer], Any]] = {
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, total_steps=20),
    "cosine above zero": lambda o: schedules.CosineAnnealingLR(o, 20, eta_min=1e-3),
    "cyclic": lambda o: schedules.CyclicLR(o, 1e-3, 0.1, step_size_up=3, cycle_momentum=False),
    "warm restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 5, eta_min=1e-4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_with_absolute_rates(name: str, pair: Pair) -> None:
    for owner in pair:
        optimizer = O.AdamW(owner.parameters(), **ADAMW)
        train(owner, optimizer, scheduler=SCHEDULES[name](optimizer))
    assert_same_state(*pair)


def test_clipping_by_value_clamps_and_averages(pair: Pair) -> None:
    averages = [AveragedModel(pair[0], multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in pair]
    for owner, average in zip(pair, averages, strict=True):
        optimizer = O.SGD(owner.parameters(), 0.5)
        for step in range(6):
            optimizer.zero_grad()
            owner(tokens(step)).backward()
            nn.utils.clip_grad_value_(owner.parameters(), 1e-3)
            optimizer.step()
            with torch.no_grad():
                for parameter in owner.parameters():
                    parameter.clamp_(-2e-3, 2e-3)
            average.update_parameters(owner)
    assert_same_state(*pair)
    assert_same_state(averages[0].module, averages[1].module)


def test_training_changes_horses() -> None:
    """Original, module, original, module of another plan: model and optimizer handed on."""
    model, plain = small(), small()
    reference = O.AdamW(plain.parameters(), **ADAMW)
    owner: nn.Module = model
    held: dict[str, Any] | None = None
    for leg in range(4):
        if leg % 2:
            owner = at_any_scales(small(seed=9), seed=leg)
        elif leg:
            owner = small(seed=9)
        optimizer = O.AdamW(owner.parameters(), **ADAMW)
        if held is not None:
            owner.load_state_dict(held["model"])
            optimizer.load_state_dict(held["optimizer"])
        train(owner, optimizer, clip=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1))
        train(plain, reference, clip=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1))
        assert_same_state(plain, owner)
        state, expected = optimizer.state_dict(), reference.state_dict()
        assert state["param_groups"] == expected["param_groups"]
        for index, moments in expected["state"].items():
            for name, tensor in moments.items():
                assert torch.equal(state["state"][index][name], tensor)
        held = copy.deepcopy({"model": owner.state_dict(), "optimizer": state})


def test_inplace_shares_the_models_own_parameters() -> None:
    model = small()
    before = copy.deepcopy(model)
    module = unitify.transform(model, (tokens(0),), inplace=True)
    own = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        assert own[name] is parameter
    assert_same_state(before, model)
    train(module, O.AdamW(model.parameters(), **ADAMW))
    train(before, O.AdamW(before.parameters(), **ADAMW))
    assert_same_state(before, model)


def test_a_rebase_exchanges_constants_alone() -> None:
    """No optimizer and no schedule is needed, known or not."""
    model = small()
    module = unitify.transform(model, (tokens(0),))
    for owner in (model, module):
        optimizer = O.RAdam(owner.parameters(), 0.05)
        schedule = SCHEDULES["one cycle"](optimizer)
        train(owner, optimizer, scheduler=schedule)
        if owner is module:
            owner(tokens(1)).backward()
            state = copy.deepcopy([owner.state_dict(), optimizer.state_dict()])
            gradients = [p.grad.clone() for p in owner.parameters() if p.grad is not None]
            assert unitify.rebase_(owner, [(tokens(1),)]).values > 0
            assert str(state) == str([owner.state_dict(), optimizer.state_dict()])
            kept = [p.grad for p in owner.parameters() if p.grad is not None]
            assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
        train(owner, O.AdamW(owner.parameters(), **ADAMW))
    assert_same_state(model, module)


def test_param_groups_are_what_torch_would_take() -> None:
    module = unitify.transform(small(), (tokens(0),))
    (group,) = optim.param_groups(module, O.LBFGS, lr=0.1)
    assert group.keys() == {"params", "lr"}
    assert group["params"] == list(module.parameters())
    given = [{"params": module.get_parameter("hidden.bias"), "lr": 0.2, "note": "bias"}]
    (group,) = optim.param_groups(module, O.Adafactor, params=given, weight_decay=0.1)
    assert group["lr"] == 0.2
    assert group["weight_decay"] == 0.1
    assert group["note"] == "bias"
    assert optim.learning_rates(O.SGD(module.parameters(), 0.1), 0.3) == [0.3]
    with pytest.raises(unitify.UnitifyError) as caught:
        optim.param_groups(module, O.AdamW, weigth_decay=0.1)
    assert caught.value.diagnostics[0].code == "U001"
