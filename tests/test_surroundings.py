"""What a model's code reads around its modules: where it changes, the model's own code reads it."""

from __future__ import annotations

import contextlib
import copy
import cProfile
import os
import pstats
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from truth import differences

import unitify

#: The changes make a difference to a graph that holds values near unit RMS.
pytestmark = pytest.mark.usefixtures("near_unit")

FLAG = 1.0
OPTIONS = {"gain": 1.0}
SHIFTS = [0.0]
OBJECT = types.SimpleNamespace(gain=1.0)
THREAD = threading.local()
THREAD.gain = 1.0
VARIABLE: ContextVar[float] = ContextVar("gain", default=1.0)


class Options:
    gain = 1.0


def act(y: Tensor) -> Tensor:
    return y.relu()


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8)


def x(rows: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator, dtype=torch.float32)


def model_of(forward: Callable[[Any, Tensor], Tensor], **held: Any) -> Any:
    """A layer whose own ``forward`` is this function, and which holds these attributes."""
    model = type("Model", (Linear,), {"forward": forward})()
    for name, value in held.items():
        setattr(model, name, value)
    return model


@contextlib.contextmanager
def set_to(holder: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute, or an entry, that is another inside."""
    put = holder.__setitem__ if isinstance(holder, dict) else lambda n, v: setattr(holder, n, v)
    before = holder[name] if isinstance(holder, dict) else getattr(holder, name)
    put(name, value)
    try:
        yield
    finally:
        put(name, before)


@contextlib.contextmanager
def called(function: Callable[[Any], Any], inside: Any, after: Any) -> Iterator[None]:
    function(inside)
    try:
        yield
    finally:
        function(after)


@contextlib.contextmanager
def environment() -> Iterator[None]:
    os.environ["UNITIFY_TEST_GAIN"] = "3"
    try:
        yield
    finally:
        del os.environ["UNITIFY_TEST_GAIN"]


@contextlib.contextmanager
def variable() -> Iterator[None]:
    token = VARIABLE.set(3.0)
    try:
        yield
    finally:
        VARIABLE.reset(token)


@contextlib.contextmanager
def doubling() -> Iterator[None]:
    def double(module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        return output * 2 if isinstance(module, nn.Linear) else None

    handle = torch.nn.modules.module.register_module_forward_hook(double)
    try:
        yield
    finally:
        handle.remove()


def _gain_of_a_closure() -> tuple[Any, Any]:
    gain = 1.0

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.inner(x) * gain

    @contextlib.contextmanager
    def changed() -> Iterator[None]:
        nonlocal gain
        gain = 3.0
        try:
            yield
        finally:
            gain = 1.0

    return forward, changed


#: A forward, and what makes its surroundings others.
AROUND: dict[str, tuple[Callable[[Any, Tensor], Tensor], Callable[[], Any]]] = {
    "autocast": (
        lambda m, x: m.inner(x) * (2 if torch.is_autocast_enabled("cpu") else 1),
        lambda: torch.autocast("cpu", torch.bfloat16),
    ),
    "deterministic": (
        lambda m, x: m.inner(x) * (2 if torch.are_deterministic_algorithms_enabled() else 1),
        lambda: called(torch.use_deterministic_algorithms, True, False),
    ),
    "default type": (
        lambda m, x: m.inner(x) * (2 if torch.get_default_dtype() == torch.float64 else 1),
        lambda: called(torch.set_default_dtype, torch.float64, torch.float32),
    ),
    "global": (lambda m, x: m.inner(x) * FLAG, lambda: set_to(_module(), "FLAG", 3.0)),
    "function": (lambda m, x: act(m.inner(x)), lambda: set_to(_module(), "act", torch.tanh)),
    "dict": (lambda m, x: m.inner(x) * OPTIONS["gain"], lambda: set_to(OPTIONS, "gain", 3.0)),
    "list": (lambda m, x: m.inner(x) + SHIFTS[0], lambda: called(SHIFTS.append, 1.0, 1.0)),
    "class": (lambda m, x: m.inner(x) * Options.gain, lambda: set_to(Options, "gain", 3.0)),
    "object": (lambda m, x: m.inner(x) * OBJECT.gain, lambda: set_to(OBJECT, "gain", 3.0)),
    "thread": (lambda m, x: m.inner(x) * THREAD.gain, lambda: set_to(THREAD, "gain", 3.0)),
    "context": (lambda m, x: m.inner(x) * VARIABLE.get(), variable),
    "environment": (
        lambda m, x: m.inner(x) * float(os.environ.get("UNITIFY_TEST_GAIN", "1")),
        environment,
    ),
    "closure": _gain_of_a_closure(),
    "hook on all": (lambda m, x: m.inner(x), doubling),
}  # fmt: skip


def _module() -> Any:
    import sys

    return sys.modules[__name__]


@pytest.mark.parametrize("name", AROUND)
def test_what_is_read_around_a_model_takes_effect(name: str) -> None:
    forward, changed = AROUND[name]
    model = model_of(forward)
    module = unitify.transform(model, (x(),))
    assert set(module.parts) == {""}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not differences(model, module, (x(),))
    with changed(), pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))
    if name != "list":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not differences(model, module, (x(),))


def test_a_switch_that_an_island_reads_is_its_own_alone() -> None:
    model = nn.Sequential(model_of(lambda m, x: m.inner(x) * FLAG), nn.Linear(8, 8))
    model[1].register_forward_hook(lambda *_: SHIFTS.append(0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        module = unitify.transform(model, (x(),))
    assert set(module.parts) == {"0", "1"}
    with set_to(_module(), "FLAG", 3.0), pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))


def test_what_is_not_read_may_change() -> None:
    module = unitify.transform(model_of(lambda m, x: m.inner(x)), (x(),))
    with warnings.catch_warnings(), set_to(_module(), "FLAG", 3.0):
        warnings.simplefilter("error")
        module(x())


# -- what tensors say of themselves --------------------------------------------------------------


def test_a_branch_on_requires_grad() -> None:
    model = model_of(lambda m, x: m.inner(x) * (2 if m.inner.weight.requires_grad else 1))
    module = unitify.transform(model, (x(),))
    for one in (model, module):
        one.get_parameter("inner.weight").requires_grad_(False)
    with pytest.warns(unitify.UnitifyWarning, match=r"U115 .*requires_grad"):
        assert not differences(model, module, (x(),))


def test_a_branch_on_a_gradient_stays_python() -> None:
    model = model_of(lambda m, x: m.inner(x) * (2 if m.inner.weight.grad is None else 1))
    with pytest.warns(unitify.UnitifyWarning, match="uses the gradient"):
        module = unitify.transform(model, (x(),))
    for one in (model, module):
        one(x()).sum().backward()
    assert torch.equal(model(x()), module(x()))


def _forget(m: Any) -> None:
    m.inner.weight.grad = None


@pytest.mark.parametrize("clear", [lambda m: m.zero_grad(), lambda m: m.inner.zero_grad(), _forget])
def test_gradients_that_a_call_clears(clear: Any) -> None:
    model = model_of(lambda m, x: (clear(m), m.inner(x))[1])
    with pytest.warns(unitify.UnitifyWarning, match="uses the gradient"):
        module = unitify.transform(model, (x(),))
    for one in (model, module):
        for _ in range(2):
            one(x()).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(module.get_parameter(name).grad, parameter.grad)


def test_a_branch_on_a_layout() -> None:
    model = model_of(lambda m, x: m.inner(x) * (2 if x.is_contiguous() else 1))
    module = unitify.transform(model, (x(),))
    assert not differences(model, module, (x(7),))
    with pytest.raises(unitify.UnitifyError, match="U104 the elements of x"):
        module.capture.flat_inputs((torch.randn(8, 4).t(),), {})
    assert not differences(model, module, (torch.randn(8, 4).t(),))


# -- methods, classes, arrays, slots, parameters --------------------------------------------------


class Base(Linear):
    def activated(self, y: Tensor) -> Tensor:
        return y.relu()


class Derived(Base):
    def activated(self, y: Tensor) -> Tensor:
        return super().activated(y) * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.activated(self.inner(x))


class Other(Derived):
    def activated(self, y: Tensor) -> Tensor:
        return y.tanh()


def _tanh(_self: Any, y: Tensor) -> Tensor:
    return y.tanh()


METHODS: dict[str, Callable[[], Any]] = {
    "of the class": lambda: set_to(Derived, "activated", _tanh),
    "behind the class": lambda: set_to(Base, "activated", _tanh),
    "forward of the class": lambda: set_to(Derived, "forward", lambda m, x: m.inner(x).tanh()),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_exchanged(name: str) -> None:
    model = nn.Sequential(Derived(), nn.Linear(8, 8))
    module = unitify.transform(model, (x(),))
    with METHODS[name](), pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))


@pytest.mark.parametrize("path", ["", "0"])
def test_a_method_of_an_instance(path: str) -> None:
    model = nn.Sequential(Derived(), nn.Linear(8, 8)) if path else Derived()
    module = unitify.transform(model, (x(),))
    for one in (model, module):
        one.get_submodule(path).activated = torch.tanh
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))


def test_a_class_that_is_exchanged() -> None:
    model = nn.Sequential(Derived(), nn.Linear(8, 8))
    module = unitify.transform(model, (x(),))
    for one in (model, module):
        one.get_submodule("0").__class__ = Other
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(model, module, (x(),))


@dataclass(slots=True)
class Slots:
    gain: float = 1.0


HELD: dict[str, tuple[Any, Callable[[Any, Tensor], Tensor], Callable[[Any], None]]] = {
    "slots": (
        Slots, lambda m, x: m.inner(x) * m.held.gain, lambda m: setattr(m.held, "gain", 3.0)
    ),
    "array": (
        lambda: numpy.ones(8),
        lambda m, x: m.inner(x) * float(m.held[3]),
        lambda m: m.held.__setitem__(3, 3.0),
    ),
    "no bias": (
        lambda: None,
        lambda m, x: x @ m.inner.weight + (0 if m.inner.bias is None else m.inner.bias),
        lambda m: setattr(m.get_submodule("inner"), "bias", None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_what_is_changed_in_place(name: str) -> None:
    made, forward, turn = HELD[name]
    model = model_of(forward, held=made())
    module = unitify.transform(model, (x(),))
    for one in (model, module):
        turn(one)
    for one in (module, copy.deepcopy(module)):
        with pytest.warns(unitify.UnitifyWarning, match="U115"):
            assert not differences(model, one, (x(),))


def test_what_a_call_changes_in_slots_stays_python() -> None:
    def counts(m: Any, x: Tensor) -> Tensor:
        m.held.gain += 1
        return m.inner(x) * m.held.gain

    model = model_of(counts, held=Slots())
    with pytest.warns(unitify.UnitifyWarning, match=r"changes held\.gain"):
        module = unitify.transform(model, (x(),))
    for _ in range(3):
        assert not differences(model, module, (x(),))


def test_what_a_call_writes_into_an_array_stays_python() -> None:
    def counts(m: Any, x: Tensor) -> Tensor:
        m.held[0] += 1
        return m.inner(x) * float(m.held[0])

    model = model_of(counts, held=numpy.ones(2))
    with pytest.warns(unitify.UnitifyWarning, match="writes into held, an array"):
        module = unitify.transform(model, (x(),))
    assert model.held[0] == 1
    for _ in range(3):
        assert not differences(model, module, (x(),))


def test_a_profiler_goes_on_after_a_recording() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        unitify.transform(nn.Linear(2, 2), (torch.randn(3, 2),))
        act(torch.ones(1))
    finally:
        profiler.disable()
    assert act.__name__ in {function for *_, function in pstats.Stats(profiler).stats}
