"""State that no graph keeps stays Python's, or is reported; it is never lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from python_state import Linear, transformed, x
from torch import Tensor, nn
from truth import assert_true_to, call

import unitify

#: The changes make a difference to a graph that holds values near unit RMS.
pytestmark = pytest.mark.usefixtures("near_unit")


class StartsFromItsFirstBatch(Linear):
    mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.detach().mean(0)
        return self.inner(x - self.mean)


class DrawsItsTable(Linear):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "noise"):
            self.noise = torch.randn(8)
        return self.inner(x + self.noise)


class Counts(Linear):
    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.inner(x) / max(0.1, 1.0 - 0.1 * self.seen)


class CountsInAList(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.counts = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.counts[0] += 1
        return self.inner(x) * self.counts[0]


class Appends(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.history.append(len(self.history))
        return self.inner(x) + len(self.history)


CALLS = 0


class CountsGlobally(Linear):
    def forward(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return self.inner(x) * (1 + CALLS % 3)


class CountsByClass(Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return self.inner(x) * (1 + self.calls % 3)


class CountsInADefault(Linear):
    def forward(self, x: Tensor, counts: Any = None, _held: dict[str, int] = {}) -> Tensor:  # noqa: B006
        _held["calls"] = _held.get("calls", 0) + 1
        return self.inner(x) * (1 + _held["calls"] % 3)


class TakesOver(Linear):
    state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros(8) if self.state is None else self.state
        self.state = (held + x.detach().mean(0)) / 2
        return self.inner(x) + self.state


class DropsALayer(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else self.inner(x)


class DrawsFromNumPy(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * float(numpy.random.rand())


class DrawsFromItsOwn(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.rand(8, generator=self.generator)


class ClampsItsWeight(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.inner.weight.data.clamp_(-0.1, 0.1)
        return self.inner(x)


class Inside(nn.Module):
    """Something of the kind within a larger model, whose other parts are transformed."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(8, 8), part, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.part(torch.tanh(self.before(x))))


STATEFUL = [
    StartsFromItsFirstBatch, DrawsItsTable, Counts, CountsInAList, Appends, CountsGlobally,
    CountsByClass, CountsInADefault, TakesOver, DropsALayer, DrawsFromNumPy, DrawsFromItsOwn,
    ClampsItsWeight,
]  # fmt: skip
#: Kept by the class or a function, not by the model: both that are compared use the same.
SHARED = (CountsGlobally, CountsByClass, CountsInADefault)


@pytest.mark.parametrize("kind", STATEFUL)
def test_state_stays_python(kind: type[Linear]) -> None:
    global CALLS
    model = Inside(kind())
    state = torch.get_rng_state(), random.getstate()
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, (x(),))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert {"before", "after"} <= set(module.parts)
    assert "part" not in module.parts
    assert module.verification is not None
    assert module.verification.exact
    if kind in SHARED:
        for step in range(3):
            mine = call(model, (x(),), step)
            CALLS, CountsByClass.calls = CALLS - 1, CountsByClass.calls - 1
            CountsInADefault.forward.__defaults__[1]["calls"] = step
            theirs = call(module, (x(),), step)
            CountsInADefault.forward.__defaults__[1]["calls"] = step + 1
            if kind is not CountsInADefault:
                assert torch.equal(mine["output 0"], theirs["output 0"])
    else:
        assert_true_to(model, module, [(x(),), (x(),), (x(7),)])


class SeedsItself(Linear):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return self.inner(x) + torch.rand(8)


def test_a_model_that_seeds_itself_leaves_random_state_alone() -> None:
    model, state = SeedsItself(), torch.get_rng_state()
    transformed(model, x())
    assert torch.equal(torch.get_rng_state(), state)


def test_who_reads_what_another_changes_stays_python() -> None:
    class Writes(Linear):
        def __init__(self, box: dict[str, int]) -> None:
            super().__init__()
            self.box = box

        def forward(self, x: Tensor) -> Tensor:
            self.box["calls"] += 1
            return self.inner(x)

    class Reads(Linear):
        def __init__(self, box: dict[str, int]) -> None:
            super().__init__()
            self.box = box

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.box["calls"]

    box = {"calls": 0}
    model = nn.Sequential(Writes(box), Reads(box), nn.Linear(8, 8))
    module = transformed(model, x())
    assert set(module.parts) == {"0.inner", "1.inner", "2"}
    assert_true_to(model, module, [(x(),), (x(7),)])


def test_a_model_of_nothing_else_is_refused() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.randn(8, 8)), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.linear(x, self.weight) / self.calls

    with pytest.raises(unitify.UnitifyError, match=r"U102 .*changes calls") as raised:
        unitify.transform(Alone(), (x(),))
    assert raised.value.code == "U102"


def _into_a_list(seen: Any) -> Callable[..., None]:
    return lambda _module, _args, output: seen.append(output.detach())


def _into_a_dict(seen: Any) -> Callable[..., None]:
    return lambda _module, _args, output: seen.update(last=output.detach())


@pytest.mark.parametrize(("hook", "seen"), [(_into_a_list, []), (_into_a_dict, {})])
@pytest.mark.parametrize("path", ["", "0", "2"])
def test_a_hook_that_logs_leaves_the_layers_to_graphs(path: str, hook: Any, seen: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model.get_submodule(path).register_forward_hook(hook(seen))
    module = transformed(model, x())
    assert set(module.parts) == ({"0", "2"} if path else {""})
    assert_true_to(model, module, [(x(),), (x(7),)])


class Fails(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.table = x * 2
        self.calls = {"n": x.mean()}
        if x.sum() > 1e9:
            raise ValueError
        return F.linear(x, torch.ones(8, 8))


def test_the_model_is_as_it_was_when_capture_fails() -> None:
    model = Fails()
    before = dict(vars(model))
    with pytest.raises(unitify.UnitifyError):
        unitify.transform(model, (x(),))
    assert vars(model) == before
    assert isinstance(model(x()), Tensor)
