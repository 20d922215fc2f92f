"""Containers and attributes that change inside, and attributes that no ``__dict__`` holds."""

from __future__ import annotations

import weakref
from array import array
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unitify


def _first(held: Any) -> Any:
    return next(iter(held.values()))


def _to_the_end(held: Any) -> None:
    held["a"] = held.pop("a")


def _is_seven(held: Any) -> None:
    held[0] = 7


CONTAINERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "order of a dict": (lambda: {"a": 2.0, "b": 3.0}, _first, _to_the_end),
    "order of tensors": (
        lambda: {"a": torch.ones(1), "b": torch.zeros(1)}, _first, _to_the_end),
    "order of a nested dict": (
        lambda: {"of": {"a": 2.0, "b": 3.0}}, lambda c: _first(c["of"]),
        lambda c: _to_the_end(c["of"])),
    "move_to_end": (
        lambda: OrderedDict(a=2.0, b=3.0), _first, lambda c: c.move_to_end("a")),
    "order of modules": (
        lambda: nn.ModuleDict({"a": nn.Tanh(), "b": nn.ReLU()}),
        lambda c: _first(c)(torch.ones(1)), _to_the_end),
    "order of parameters": (
        lambda: nn.ParameterDict({"a": torch.ones(1), "b": torch.zeros(1)}), _first, _to_the_end),
    "deque": (lambda: deque([2.0]), lambda c: c[0], _is_seven),
    "rotate": (lambda: deque([2.0, 3.0]), lambda c: c[0], lambda c: c.rotate()),
    "deque in a dict": (
        lambda: {"of": deque([2.0])}, lambda c: c["of"][0], lambda c: _is_seven(c["of"])),
    "array": (lambda: array("d", [2.0]), lambda c: c[0], _is_seven),
    "bytearray": (lambda: bytearray([2]), lambda c: c[0], _is_seven),
    "memoryview": (lambda: memoryview(bytearray([2])), lambda c: c[0], _is_seven),
    "array of NumPy": (lambda: np.array([2.0]), lambda c: float(c[0]), _is_seven),
    "number of NumPy": (
        lambda: np.array(10**12), lambda c: float(c) / 1e12, lambda c: c.fill(7)),
    "UserList": (lambda: UserList([2.0]), lambda c: c[0], _is_seven),
    "UserDict": (lambda: UserDict({0: 2.0}), lambda c: c[0], _is_seven),
    "ChainMap": (lambda: ChainMap({0: 2.0}), lambda c: c[0], _is_seven),
    "sign of zero": (
        lambda: [0.0], lambda c: 1 / torch.tensor(c[0]), lambda c: c.__setitem__(0, -0.0)),
}  # fmt: skip


class Holds(nn.Module):
    def __init__(self, held: Any, read: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.held, self.read = nn.Linear(4, 4), held, read

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.read(self.held)


@pytest.mark.parametrize(("make", "read", "change"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_that_changes_inside(
    make: Callable[[], Any], read: Callable[[Any], Any], change: Callable[[Any], Any]
) -> None:
    model, given = Holds(make(), read), torch.randn(3, 4)
    module = unitify.transform(Holds(make(), read), given)
    assert module._changed() is None
    assert torch.equal(module(given), model(given))
    change(model.held)
    change(module.held)
    assert module._changed() is not None
    assert torch.equal(module(given), model(given))


class Slotted(nn.Module):
    __slots__ = ("gain", "more")

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gain, self.more = nn.Linear(4, 4), 2.0, [3.0]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.gain * self.more[0]


class Elsewhere:
    """A descriptor that keeps its values itself."""

    def __init__(self) -> None:
        self.held: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()

    def __get__(self, owner: Any, kind: Any = None) -> float:
        return self.held.get(owner, 2.0)

    def __set__(self, owner: Any, value: float) -> None:
        self.held[owner] = value


class Described(Slotted):
    gain = Elsewhere()  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Slotted, Described])
def test_attributes_that_are_not_in_the_dict(kind: type[nn.Module]) -> None:
    model, given = kind(), torch.randn(3, 4)
    module = unitify.transform(model, given)
    assert torch.equal(module(given), model(given))
    for one in (model, module):
        one.gain = 5.0
    assert module.gain == 5.0
    assert torch.equal(module(given), model(given))
    for one in (model, module):
        one.gain, one.more[0] = 2.0, 7.0
    assert torch.equal(module(given), model(given))


class CountsInASlot(Slotted):
    __slots__ = ()

    def forward(self, x: Tensor) -> Tensor:
        self.gain += 1
        return super().forward(x)


def test_a_slot_that_calls_change() -> None:
    model, given = CountsInASlot(), torch.randn(3, 4)
    with pytest.warns(unitify.UnitifyWarning, match="U101"):
        module = unitify.transform(model, given)
    assert model.gain == module.gain == 2.0
    for _ in range(3):
        assert torch.equal(module(given), model(given))
