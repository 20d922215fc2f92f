"""Moments that are not what a row says get a code and are counted; no bug hides there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.analysis.analyze import Analysis, analyze
from unitify.analysis.forward import ForwardMoments
from unitify.capture.whole import Capture, capture
from unitify.explain import explain_value
from unitify.rulebook.operation import Operation
from unitify.rulebook.refusal import CannotRun, refusals
from unitify.rulebook.rule_table import load_rules

X = torch.randn(4, 6)


class Sums(nn.Module):
    """Running sums, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).cumsum(0).cumsum(1)


#: A row that averages over a dimension which a matrix has not.
AWAY = {
    "aten.cumsum.default": {
        "replaces": True, "over": [-5], "forward": {"square": "average(square(self))"},
    }
}  # fmt: skip


def test_a_fallback_has_a_code_and_is_counted() -> None:
    module = unitify.transform(Sums(), (X,), rules=[AWAY], scales="analysis")
    (found,) = [d for d in module.diagnostics if d.code == "U206"]
    assert (found.operation, found.direction, found.way) == (
        "aten.cumsum.default", "forward", "sampled",
    )  # fmt: skip
    assert found.count == 2
    assert found.reason == "it has 2 dimensions, and its row averages over others"
    assert found.message in explain_value("cumsum_1", Sums(), (X,), rules=[AWAY])


def test_nothing_falls_back_where_rows_hold() -> None:
    assert not unitify.transform(Sums(), (X,), scales="analysis").diagnostics


def refusing(operation: str, when: Callable[[Any], bool]) -> Callable[..., Any]:
    """``Operation.__call__`` of which one operation refuses some of its calls."""
    call = Operation.__call__

    def refuse(self: Operation, replaced: Any = None) -> Any:
        if str(self.node.target) == operation and when(replaced):
            with refusals():
                raise TypeError("not of this type\nand more")
        return call(self, replaced or {})

    return refuse


@functools.cache
def captured() -> Capture:
    return capture(Sums(), (X,), {})


def analyzed() -> Analysis:
    return analyze(captured(), load_rules())


@pytest.mark.parametrize(
    ("when", "way", "directions"),
    [
        (lambda _: True, "assumed", ["forward", "backward"]),
        # The analysis runs on float64, a sample is of the model's own type.
        (lambda r: r["self"].dtype == torch.float64, "sampled", ["forward"]),
    ],
)
def test_what_an_operation_refuses_is_sampled_or_assumed(
    when: Callable[[Any], bool], way: str, directions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Operation, "__call__", refusing("aten.cumsum.default", when))
    found = analyzed().diagnostics
    assert [(d.operation, d.direction, d.way, d.count) for d in found] == [
        ("aten.cumsum.default", direction, way, 2) for direction in directions
    ]
    assert {d.reason for d in found} == {"not of this type"}


@pytest.mark.parametrize("error", [KeyError, AttributeError, TypeError, IndexError, ValueError])
def test_a_bug_is_no_fallback(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise error("a bug")

    monkeypatch.setattr("unitify.analysis.forward.linear_forward", broken)
    with pytest.raises(error, match="a bug"):
        analyzed()
    monkeypatch.undo()
    monkeypatch.setattr("unitify.analysis.backward.linear_gradient", broken)
    with pytest.raises(error, match="a bug"):
        analyzed()
    monkeypatch.undo()
    monkeypatch.setattr(ForwardMoments, "operands", broken)
    with pytest.raises(error, match="a bug"):
        analyzed()


def test_a_refusal_says_what_the_operation_said() -> None:
    with pytest.raises(CannotRun, match=r"^the first line$"), refusals():
        raise ValueError("\n the first line \nanother")
    with pytest.raises(KeyError), refusals():
        raise KeyError("no refusal")
    with pytest.raises(CannotRun), refusals():
        None.tolist()  # type: ignore[attr-defined]
