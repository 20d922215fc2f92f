"""Numbers that a model's code reads from objects beside its modules, and that change later."""

from __future__ import annotations

import argparse
import functools
import weakref
from collections import defaultdict, namedtuple
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from python_state import x
from torch import Tensor, nn
from torch.nn.functional import gelu

import unitify


class Gain:
    """A number, in several places of an object."""

    of_class: ClassVar[float] = 2.0
    only: ClassVar[Gain | None] = None

    def __init__(self) -> None:
        self.value = 2.0

    def get(self) -> float:
        return self.value

    @property
    def asked(self) -> float:
        return self.value

    @classmethod
    def shared(cls) -> float:
        return cls.of_class

    @classmethod
    def one(cls) -> Gain:
        cls.only = cls.only or cls()
        return cls.only


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 2.0


class Listed(list[float]):
    pass


DEFAULTS, DEFAULTS_OF_FORWARD = {"value": 2.0}, {"value": 2.0}
Pair = namedtuple("Pair", "options")
step = 1.0
GAIN, NESTED, SLOTTED = Gain(), {"of": (Gain(),)}, Slotted()
LISTED, COUNTED, PARSED = (
    Listed([2.0]),
    defaultdict(float, value=2.0),
    argparse.Namespace(value=2.0),
)


def times(y: Tensor, options: Any = DEFAULTS, *, factor: float = 2.0) -> Tensor:
    return y * options["value"] * factor


PARTIAL = functools.partial(times, factor=2.0)


class Reads(nn.Module):
    """A layer, and ``reads``, which is applied to the module and the layer's output."""

    of_class = 2.0

    def __init__(self, reads: Callable[[Any, Tensor], Tensor], held: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.reads, self.held = nn.Linear(8, 8), reads, held

    def forward(self, x: Tensor, options: Any = DEFAULTS_OF_FORWARD) -> Tensor:
        return self.reads(self, self.inner(x)) * options["value"]


def _closed_over(held: Any, read: Callable[[Any], float]) -> Callable[[Any, Tensor], Tensor]:
    return lambda module, y: y * read(held)


def _with_attribute() -> Any:
    def own(y: Tensor) -> Tensor:
        return y * own.value  # type: ignore[attr-defined, no-any-return]

    own.value = 2.0  # type: ignore[attr-defined]
    return own


OWN = _with_attribute()
LIVES = Gain()

#: What the code reads, what the module holds, and the change: of the module, to a new number.
Case = tuple[Callable[[Any, Tensor], Tensor], Callable[[], Any], Callable[[Any, float], Any]]
_CLOSED: dict[str, Any] = {"value": 2.0}
_OBJECT, _DEEP = SimpleNamespace(value=2.0), SimpleNamespace(inner=SimpleNamespace(value=2.0))

CASES: dict[str, Case] = {
    "a method of a global object": (
        lambda m, y: y * GAIN.get(), Gain, lambda m, v: setattr(GAIN, "value", v)),
    "a property of a global object": (
        lambda m, y: y * GAIN.asked, Gain, lambda m, v: setattr(GAIN, "value", v)),
    "an object in a global container": (
        lambda m, y: y * NESTED["of"][0].get(), Gain,
        lambda m, v: setattr(NESTED["of"][0], "value", v)),
    "slots of a global object": (
        lambda m, y: y * SLOTTED.value, Gain, lambda m, v: setattr(SLOTTED, "value", v)),
    "a subclass of list": (lambda m, y: y * LISTED[0], Gain, lambda m, v: LISTED.__setitem__(0, v)),
    "a subclass of dict": (
        lambda m, y: y * COUNTED["value"], Gain, lambda m, v: COUNTED.update(value=v)),
    "parsed arguments": (
        lambda m, y: y * PARSED.value, Gain, lambda m, v: setattr(PARSED, "value", v)),
    "a closure over a dict": (
        _closed_over(_CLOSED, lambda held: held["value"]), Gain,
        lambda m, v: _CLOSED.update(value=v)),
    "a closure over an object": (
        _closed_over(_OBJECT, lambda held: held.value), Gain,
        lambda m, v: setattr(_OBJECT, "value", v)),
    "a closure over nested objects": (
        _closed_over(_DEEP, lambda held: held.inner.value), Gain,
        lambda m, v: setattr(_DEEP.inner, "value", v)),
    "type(self)": (
        lambda m, y: y * type(m).of_class, Gain, lambda m, v: setattr(Reads, "of_class", v)),
    "self.__class__": (
        lambda m, y: y * m.__class__.of_class, Gain, lambda m, v: setattr(Reads, "of_class", v)),
    "a class that the module holds": (
        lambda m, y: y * m.held.of_class, lambda: Gain, lambda m, v: setattr(Gain, "of_class", v)),
    "a class method": (
        lambda m, y: y * Gain.shared(), Gain, lambda m, v: setattr(Gain, "of_class", v)),
    "the only object of a class": (
        lambda m, y: y * Gain.one().value, Gain, lambda m, v: setattr(Gain.one(), "value", v)),
    "a weak reference": (
        lambda m, y: y * m.held().value, lambda: weakref.ref(LIVES),
        lambda m, v: setattr(LIVES, "value", v)),
    "an attribute of a function": (
        lambda m, y: OWN(y), Gain, lambda m, v: setattr(OWN, "value", v)),
    "a default of a function": (
        lambda m, y: times(y), Gain, lambda m, v: DEFAULTS.update(value=v)),
    "a default of the forward": (
        lambda m, y: y, Gain, lambda m, v: DEFAULTS_OF_FORWARD.update(value=v)),
    "keywords of a global partial": (
        lambda m, y: PARTIAL(y), Gain, lambda m, v: PARTIAL.keywords.update(factor=v)),
    "keywords of a partial that the module holds": (
        lambda m, y: m.held(y), lambda: functools.partial(times, options={"value": 2.0}),
        lambda m, v: m.held.keywords["options"].update(value=v)),
    "a bound method that the module holds": (
        lambda m, y: y * m.held(), lambda: Gain().get,
        lambda m, v: setattr(m.held.__self__, "value", v)),
    "a namespace in a namespace": (
        lambda m, y: y * m.held.inner.value,
        lambda: SimpleNamespace(inner=SimpleNamespace(value=2.0)),
        lambda m, v: setattr(m.held.inner, "value", v)),
    "a dict in a named tuple": (
        lambda m, y: y * m.held.options["value"], lambda: Pair({"value": 2.0}),
        lambda m, v: m.held.options.update(value=v)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_number_that_changes_later(name: str) -> None:
    reads, held, change = CASES[name]
    model = Reads(reads, held())
    before = model(x())
    module = unitify.transform(model, (x(),))
    assert torch.equal(module(x()), before)
    for each in (model, module):
        change(each, 3.0)
    try:
        expected = model(x())
        assert not torch.equal(expected, before)
        assert torch.equal(module(x()), expected)
        assert module._changed() is not None
    finally:
        for each in (model, module):
            change(each, 2.0)
    assert torch.equal(module(x()), before)


def test_a_global_with_the_name_of_an_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's own ``loss`` or ``step`` is not what ``self.step`` reads."""
    model = Reads(lambda module, y: y * module.step)
    model.step = 2.0  # type: ignore[assignment]
    module = unitify.transform(model, (x(),))
    monkeypatch.setitem(globals(), "step", 5.0)
    assert module._changed() is None


@pytest.mark.parametrize("changed", [0, 1])
def test_functions_of_one_factory(changed: int) -> None:
    """Their closures have the same names, and so have the objects in them."""
    held = [SimpleNamespace(value=2.0, more={"value": 2.0}) for _ in range(2)]

    def reads(of: SimpleNamespace) -> Callable[[Any, Tensor], Tensor]:
        return lambda module, y: y * of.value * of.more["value"]

    model = nn.Sequential(*(Reads(reads(each)) for each in held))
    module = unitify.transform(model, (x(),))
    before = model(x())
    held[changed].value = 3.0
    assert torch.equal(module(x()), model(x()))
    held[changed].value, held[changed].more["value"] = 2.0, 3.0
    assert torch.equal(module(x()), model(x()))
    held[changed].more["value"] = 2.0
    assert torch.equal(module(x()), before)


@pytest.mark.parametrize(
    ("namespace", "name"),
    [(torch, "tanh"), (F, "softmax"), (globals(), "gelu")],
    ids=["of torch", "of a module of torch", "imported by name"],
)
def test_an_exchanged_function_of_torch(
    namespace: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Reads(lambda module, y: F.softmax(gelu(torch.tanh(y)), -1))
    module = unitify.transform(model, x())
    assert torch.equal(module(x()), model(x()))
    held = namespace if isinstance(namespace, dict) else vars(namespace)
    own = held[name]
    monkeypatch.setitem(held, name, lambda *args: own(*args) * 2)
    assert torch.equal(module(x()), model(x()))
    monkeypatch.undo()
    assert module._changed() is None
