"""Clipping and learning-rate schedulers: they see the true gradients and rates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from training import ADAMW, STEPS, Pair, assert_same_parameters, fresh_pair, tokens, train

import unitify
from unitify import optim

O = torch.optim  # noqa: E741


@pytest.fixture
def pair() -> Pair:
    return fresh_pair()


# -- clipping -----------------------------------------------------------------------------


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
def test_clipping_by_norm(pair: Pair, norm_type: float, max_norm: float) -> None:
    model, module = pair
    backward(model, module)
    expected = nn.utils.clip_grad_norm_(list(model.parameters()), max_norm, norm_type)
    found = optim.clip_grad_norm_(module, max_norm, norm_type)
    assert torch.equal(expected, found)
    assert_same_gradients(model, module)


def test_clipping_by_value(pair: Pair) -> None:
    model, module = pair
    backward(model, module)
    nn.utils.clip_grad_value_(list(model.parameters()), 0.02)
    optim.clip_grad_value_(module, 0.02)
    assert any(bool((p.grad.abs() == 0.02).any()) for p in model.parameters() if p.grad is not None)
    assert_same_gradients(model, module)


def test_clipping_without_gradients(pair: Pair) -> None:
    assert torch.equal(optim.clip_grad_norm_(pair[1], 1.0), torch.tensor(0.0))


def test_a_norm_that_is_not_finite(pair: Pair) -> None:
    _, module = pair
    backward(module)
    next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("nan"))
    assert torch.isnan(optim.clip_grad_norm_(module, 1.0))
    with pytest.raises(RuntimeError, match="non-finite"):
        optim.clip_grad_norm_(module, 1.0, error_if_nonfinite=True)


def test_training_with_clipping_and_accumulation(pair: Pair) -> None:
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


def schedule(
    pair: Pair, plain: Callable[[Optimizer], Any], own: Callable[[Optimizer], Any]
) -> None:
    model, module = pair
    optimizer = O.AdamW(list(model.parameters()), **ADAMW)
    train(model, optimizer, scheduler=plain(optimizer))
    optimizer = O.AdamW(optim.param_groups(module, O.AdamW, **ADAMW))
    train(module, optimizer, scheduler=own(optimizer))


@pytest.mark.parametrize("name", MULTIPLYING)
def test_a_scheduler_that_multiplies(pair: Pair, name: str) -> None:
    schedule(pair, MULTIPLYING[name], MULTIPLYING[name])
    assert_same_parameters(*pair)


def test_a_scheduler_of_absolute_rates(pair: Pair) -> None:
    rates = optim.learning_rates

    def cycle(optimizer: Optimizer, most: Any) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, most, total_steps=STEPS + 1)

    schedule(pair, lambda o: cycle(o, 0.05), lambda o: cycle(o, rates(o, 0.05)))
    assert_same_parameters(*pair)


def test_one_absolute_rate_for_all_groups_is_another_training(pair: Pair) -> None:
    """What the documentation warns of: ``eta_min`` is one number, the groups' units differ."""

    def cosine(optimizer: Optimizer) -> Any:
        return lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=5e-3)

    schedule(pair, cosine, cosine)
    with pytest.raises(AssertionError):
        assert_same_parameters(*pair)
