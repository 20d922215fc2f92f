"""What tests of Python state begin with: a model to change, its module, an input."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import unitify


class Linear(nn.Module):
    """A linear layer that its subclasses do something beside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8)


def transformed(model: nn.Module, *args: Any) -> unitify.UnitScaledModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        return unitify.transform(model, args)


def x(rows: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator)
