"""State beside the tables of a module: in plain tensors, tuples, and objects that code names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from python_state import Linear, transformed, x
from torch import Tensor, nn

import unitify

HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda t: t,
    "a list": lambda t: [t],
    "a dict in a list": lambda t: [{"sum": t}],
    "a tuple": lambda t: (t,),
    "a list in a tuple": lambda t: ([t],),
    "an object": lambda t: SimpleNamespace(sum=t),
}


def innermost(held: Any) -> Tensor:
    while not isinstance(held, Tensor):
        held = vars(held) if isinstance(held, SimpleNamespace) else held
        (held,) = held.values() if isinstance(held, dict) else held
    return held


def add(held: Tensor, y: Tensor) -> Tensor:
    return y + held.add_(y.detach().sum(0))


def average(held: Tensor, y: Tensor) -> Tensor:
    return y - held.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)


def copy(held: Tensor, y: Tensor) -> Tensor:
    return y * held.copy_(y.detach().abs().amax(0))


def into(held: Tensor, y: Tensor) -> Tensor:
    return y + torch.add(y.detach()[0], 1.0, out=held)


def assign(held: Tensor, y: Tensor) -> Tensor:
    held[0] = y.detach().sum()
    return y + held


@pytest.mark.parametrize("write", [add, average, copy, into, assign])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_write_into_a_plain_tensor(
    holder: str, write: Callable[[Tensor, Tensor], Tensor]
) -> None:
    class Model(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.held = HOLDERS[holder](torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            return write(innermost(self.held), self.inner(x))

    model = Model()
    module: Any = transformed(model, x())
    assert not innermost(model.held).any()
    for rows in (4, 7, 4):
        assert torch.equal(module(x(rows)), model(x(rows)))
        assert torch.equal(innermost(module.held), innermost(model.held))


class Count:
    def __init__(self) -> None:
        self.calls, self.sum = 0, torch.zeros(8)


COUNT, SPACE, SUMS = Count(), SimpleNamespace(calls=0), (torch.zeros(8),)


class CountsInGlobal(Linear):
    def forward(self, x: Tensor) -> Tensor:
        COUNT.calls += 1
        return self.inner(x) * COUNT.calls


class SumsInGlobal(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + COUNT.sum.add_(1)


class CountsInNamespace(Linear):
    def forward(self, x: Tensor) -> Tensor:
        SPACE.calls += 1
        return self.inner(x) * SPACE.calls


class SumsInTuple(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + SUMS[0].add_(1)


class CountsInItsClass(Linear):
    count = Count()

    def forward(self, x: Tensor) -> Tensor:
        self.count.calls += 1
        self.count.sum.add_(1)
        return self.inner(x) * self.count.calls + self.count.sum


def now() -> list[float]:
    counts = COUNT, CountsInItsClass.count
    sums = [float(t[0]) for t in (*SUMS, *(c.sum for c in counts))]
    return [SPACE.calls, *(c.calls for c in counts), *sums]


def set_to(state: list[float]) -> None:
    SPACE.calls, COUNT.calls, CountsInItsClass.count.calls = map(int, state[:3])
    for tensor, value in zip(
        (*SUMS, COUNT.sum, CountsInItsClass.count.sum), state[3:], strict=True
    ):
        tensor.fill_(value)


@pytest.mark.parametrize(
    "kind", [CountsInGlobal, SumsInGlobal, CountsInNamespace, SumsInTuple, CountsInItsClass]
)
def test_state_of_objects_that_code_names(kind: type[nn.Module]) -> None:
    model, before = kind(), now()
    module = transformed(model, x())
    assert now() == before
    for _ in range(3):
        start = now()
        expected, after = model(x()), now()
        assert after != start
        set_to(start)
        assert torch.equal(module(x()), expected)
        assert now() == after


class Registry(OrderedDict[str, Any]):
    """Gives instances of the classes that it holds, as that of activations in transformers."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


class Lazy(dict[str, Any]):
    """Shows only what is there, and makes the rest when it is asked for it."""

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __getitem__(self, key: str) -> Any:
        return super().get(key, nn.Identity)()


class Doubles(list[Any]):
    """Shows each item twice, and cannot be emptied."""

    def __iter__(self) -> Iterator[Any]:
        return iter([*super().__iter__()] * 2)

    def clear(self) -> None:
        raise TypeError


REGISTRIES: tuple[Any, ...] = (
    Registry(tanh=nn.Tanh, relu=nn.ReLU),
    Lazy(tanh=nn.Tanh, relu=nn.ReLU),
    Doubles([nn.Tanh, nn.ReLU]),
)


class ByRegistry(Linear):
    def forward(self, x: Tensor) -> Tensor:
        registry, lazy, doubles = REGISTRIES
        return lazy["tanh"](registry["relu"](self.inner(x))) * len(doubles)


def test_a_container_that_shows_other_things_than_it_holds_keeps_them() -> None:
    before = [[*dict.items(r)] if isinstance(r, dict) else r[:] for r in REGISTRIES]
    model = ByRegistry()
    assert torch.equal(transformed(model, x())(x()), model(x()))
    assert [[*dict.items(r)] if isinstance(r, dict) else r[:] for r in REGISTRIES] == before


def test_a_lost_write_into_a_plain_tensor_is_found() -> None:
    class Writes(Linear):
        def __init__(self, step: float) -> None:
            super().__init__()
            self.seen, self.step = [torch.zeros(1)], step

        def forward(self, x: Tensor) -> Tensor:
            self.seen[0].add_(self.step)
            return self.inner(x)

    module = transformed(Writes(1.0), x())
    assert unitify.verify(Writes(1.0), module, (x(),)).exact
    found = unitify.verify(Writes(2.0), module, (x(),))
    assert found.differences[0].name.startswith("seen[0] as the call leaves it")
