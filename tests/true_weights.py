"""A model and its module of true weights, and what has to be the same of the two."""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import pytest
import torch
from conversion import RULES
from strategies import random_plan
from torch import nn
from training import Pair, Tied, tokens

import unitify
from unitify.capture.whole import capture
from unitify.module.assembly import build
from unitify.part import Part
from unitify.rewrite import rewrite


def at_any_scales(model: nn.Module, seed: int = 5) -> unitify.UnitScaledModule:
    """A module of true weights whose other values have scales drawn at random."""
    captured = capture(model, (tokens(0),), {}).with_true_parameters()
    generator = random.Random(seed)
    chosen = random_plan(lambda _: generator.randint(-6, 6), captured, RULES)
    return build(Part("", captured, chosen, rewrite(captured, chosen, RULES)))


def small(seed: int = 0) -> Tied:
    """Weights so far from unit RMS that a scale would move them."""
    torch.manual_seed(seed)
    model = Tied()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0**-7)
    return model


@functools.cache
def made(scales: str) -> Pair:
    model = small()
    if scales == "chosen":
        return model, unitify.transform(model, (tokens(0),))
    return model, at_any_scales(model)


@pytest.fixture(params=["chosen", "any"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Copies of a pair that is made once, to train."""
    return copy.deepcopy(made(request.param))


def assert_same_state(model: nn.Module, module: nn.Module) -> None:
    own, theirs = module.state_dict(), model.state_dict()
    assert list(own) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(own[name], tensor), name


def assert_same_results(model: nn.Module, module: nn.Module, *args: Any) -> None:
    args = args or (tokens(9),)
    for owner in (model, module):
        owner.zero_grad()
    expected, found = model(*args), module(*args)
    assert torch.equal(expected, found)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {n: p.grad for n, p in module.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
        else:
            assert torch.equal(parameter.grad, gradients[name]), name
