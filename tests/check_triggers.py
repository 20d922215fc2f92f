"""What makes each code of ``unitify check`` appear, for the test that every code has something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import unitify
from unitify.capture.source import Repository
from unitify.check.baseline import read_baseline
from unitify.check.checking import check
from unitify.check.plan_faults import Comparison
from unitify.check.settings import settings_from
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.diagnostics import Diagnostic
from unitify.recipe.recipe import FP8
from unitify.rulebook.rule_table import load_rules

X = torch.randn(4, 16)


class Forward(nn.Module):
    """A linear layer and a function of it."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def linear(std: float) -> nn.Module:
    model = Forward(lambda m, x: m.linear(x))
    nn.init.normal_(model.linear.weight, std=std)
    return model


def found(
    model: nn.Module,
    comparison: Comparison | None = None,
    is_measured: bool = False,
    **settings: object,
) -> list[Diagnostic]:
    rules = load_rules()
    subject = subject_of(model, X, None, FP8, rules)
    outcome = check(
        subject,
        settings_from(settings),
        rules,
        SourceLines(Repository(Path()), subject.model, None),
        is_measured=is_measured,
        comparison=comparison,
    )
    return [finding.diagnostic for finding in outcome.findings]


def _broken_baseline(path: Path) -> list[Diagnostic]:
    (path / "unitify-baseline.json").write_text("<<<<<<< HEAD")
    read_baseline(path / "unitify-baseline.json")
    return []


def _other_plan(path: Path) -> list[Diagnostic]:
    plan = unitify.transform(linear(1.0), X).plan
    return found(linear(64.0), Comparison(committed=plan, path="plan.json"))


def _moved_weights(path: Path) -> list[Diagnostic]:
    module = unitify.transform(linear(1.0), X)
    with torch.no_grad():
        module.get_parameter("linear.weight").mul_(64)
    return found(module, Comparison(drift=True))


#: Code → what makes it appear, in a folder of its own.
TRIGGERS: dict[str, Callable[[Path], list[Diagnostic]]] = {
    "U011": lambda path: found(linear(1.0), flush=0.1),
    "U608": _broken_baseline,
    "U801": lambda path: found(linear(0.02), format="unit"),
    "U802": lambda path: found(linear(0.01)),
    "U803": lambda path: found(linear(1e-5)),
    "U804": lambda path: found(linear(1e4)),
    "U805": lambda path: found(
        Forward(lambda m, x: (m.linear(x) * 1e4).exp().mean()), is_measured=True
    ),
    "U806": lambda path: found(Forward(lambda m, x: x * m.linear(x).detach())),
    "U807": _moved_weights,
    "U808": _other_plan,
    "U809": lambda path: found(nn.Identity()),
}
