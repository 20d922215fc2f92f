"""Random programs of Python state: a call does what the model's does, or a code says why not."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from truth import differences

import unitify

#: One step of a forward: the module, the value so far, a small number → the next value.
Step = Callable[[Any, Tensor, int], Tensor]


def _count(m: Any, x: Tensor, n: int) -> Tensor:
    m.calls += n
    return x + m.calls


def _read_count(m: Any, x: Tensor, n: int) -> Tensor:
    return x * (1 + m.calls % (n + 2))


def _read_knob(m: Any, x: Tensor, n: int) -> Tensor:
    return x * m.knobs[n % 3]


def _keep(m: Any, x: Tensor, n: int) -> Tensor:
    setattr(m, f"kept{n % 2}", x.mean(0))
    return x


def _read_kept(m: Any, x: Tensor, n: int) -> Tensor:
    held = getattr(m, f"kept{n % 2}", None)
    return x if held is None else x + held.detach()


def _make(m: Any, x: Tensor, n: int) -> Tensor:
    if "table" not in m.cache:
        m.cache["table"] = torch.arange(8.0) / (n + 1)
    return x + m.cache["table"]


def _grow(m: Any, x: Tensor, n: int) -> Tensor:
    m.history.append(n)
    return x + len(m.history)


def _clear(m: Any, x: Tensor, n: int) -> Tensor:
    m.losses.clear()
    m.losses.append(x.square().mean())
    return x * (n + 1)


def _average(m: Any, x: Tensor, n: int) -> Tensor:
    if m.training:
        m.average.mul_(0.5).add_(x.detach().mean(0))
    return x - m.average


def _assign_average(m: Any, x: Tensor, n: int) -> Tensor:
    m.average = m.average * 0.5 + x.detach().mean(0)
    return x + m.average


def _drop(m: Any, x: Tensor, n: int) -> Tensor:
    return x if m.training and random.random() < 0.5 else x * 2


def _linear(m: Any, x: Tensor, n: int) -> Tensor:
    return torch.tanh(m.layers[n % 2](x))


def _listed(m: Any, x: Tensor, n: int) -> Tensor:
    return x @ m.listed[n % 2]


def _dropout(m: Any, x: Tensor, n: int) -> Tensor:
    return m.drop(x)


def _by_mode(m: Any, x: Tensor, n: int) -> Tensor:
    return x * 2 if m.training else x + n


STEPS: tuple[Step, ...] = (
    _count, _read_count, _read_knob, _keep, _read_kept, _make, _grow, _clear, _average,
    _assign_average, _drop, _linear, _linear, _listed, _dropout, _by_mode,
)  # fmt: skip
PROGRAMS = st.lists(
    st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 3)), min_size=1, max_size=6
)


class Part(nn.Module):
    def __init__(self, program: list[tuple[int, int]], shared: dict[str, Tensor]) -> None:
        super().__init__()
        self.program = tuple(program)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.own = nn.Parameter(torch.randn(8, 8) / 3)
        self.listed = [self.own, self.layers[0].weight]
        self.drop = nn.Dropout(0.3)
        self.register_buffer("average", torch.zeros(8))
        self.calls, self.knobs = 0, [0.5, 1.5, 2.5]
        self.history: list[int] = []
        self.losses: list[Tensor] = []
        self.cache = shared

    def forward(self, x: Tensor) -> Tensor:
        for index, number in self.program:
            x = STEPS[index](self, x, number)
        return x


class Model(nn.Module):
    def __init__(self, programs: list[list[tuple[int, int]]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared: dict[str, Tensor] = {}
        self.parts = nn.ModuleList(Part(program, shared) for program in programs)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.out(x)


def _seen(model: nn.Module) -> list[Any]:
    """Everything plain that the parts hold."""
    return [
        (p.calls, list(p.history), len(p.losses), sorted(p.cache), p.knobs)
        for p in model.modules()
        if isinstance(p, Part)
    ]


def outcome(programs: list[list[tuple[int, int]]]) -> str:
    """What became of a model: a module of its calls, or the code by which it was refused."""
    model = Model(programs)
    before = _seen(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = unitify.transform(model, (torch.randn(4, 8),))
        except unitify.UnitifyError as error:
            assert _seen(model) == before
            return error.code
        assert _seen(model) == before
        for step, (training, rows) in enumerate([(True, 4), (True, 5), (False, 3), (True, 4)]):
            model.train(training)
            module.train(training)
            x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(step))
            try:
                found = differences(model, module, (x,), step)
            except unitify.UnitifyError as error:
                return f"refused by {error.code}"
            assert not found, (found, programs)
            assert _seen(module) == _seen(model)
    return "whole" if "" in module.parts else "parts"


@pytest.mark.parametrize("half", range(2))
def test_programs_of_state(half: int) -> None:
    """Forty programs, in halves that two processes run side by side."""
    counts: Counter[str] = Counter()

    @seed(half)
    @settings(
        max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.lists(PROGRAMS, min_size=1, max_size=2))
    def one(programs: list[list[tuple[int, int]]]) -> None:
        counts[outcome(programs)] += 1

    one()
    # They are no list of refusals.
    assert counts["whole"] >= 3
    assert counts["parts"] >= 3
    assert counts["whole"] + counts["parts"] >= 0.8 * counts.total()
