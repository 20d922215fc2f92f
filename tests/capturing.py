"""What tests of capture have in common: a module around a function, and calls compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from conversion import same, tensors
from torch import Tensor, nn

import unitify


class Forward(nn.Module):
    """A module around a function, with two layers to use."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def transformed(model: nn.Module, *args: Any, **kwargs: Any) -> unitify.UnitScaledModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unitify.transform(model, args, kwargs, scales="measured")


def assert_same_call(model: nn.Module, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    torch.manual_seed(1)
    expected = model(*args, **kwargs)
    torch.manual_seed(1)
    found = module(*args, **kwargs)
    assert type(found) is type(expected)
    assert len(tensors(expected)) == len(tensors(found))
    for a, b in zip(tensors(expected), tensors(found), strict=True):
        assert same(a, b)


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same_buffers(model: nn.Module, module: nn.Module) -> None:
    found = states(module)
    for name, buffer in states(model).items():
        assert same(buffer, found[name]), name
