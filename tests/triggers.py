"""The register of what makes every diagnostic appear; its rows are in the files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import check_triggers
import torch
from torch import Tensor, nn

from unitify.capture.whole import capture
from unitify.diagnostics import Diagnostic

X = torch.randn(4, 6)

Found = list[Diagnostic]


TRIGGERS: dict[str, Callable[[Path], Found | None]] = {**check_triggers.TRIGGERS}


def triggers(code: str) -> Callable[[Callable[[Path], Found | None]], None]:
    """Register what makes a diagnostic appear: an error is raised, or findings are returned."""

    def register(trigger: Callable[[Path], Found | None]) -> None:
        assert code not in TRIGGERS, code
        TRIGGERS[code] = trigger

    return register


class Forward(nn.Module):
    """A module around a function, with one parameter."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def noted(model: nn.Module, x: Tensor = X) -> Found:
    return list(capture(model, (x,), {}).diagnostics)
