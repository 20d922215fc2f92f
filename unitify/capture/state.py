"""The state of a model at one moment: taken, compared with the state later, and restored.

A call may do more than return. It may keep a tensor on a module, count, fill a cache, draw from a
generator, or add to a dict that it was given. All of it shows as a difference between the states
before and after.
"""

from __future__ import annotations

import contextlib
import operator
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.hooks import RemovableHandle

from unitify.capture.equality import same
from unitify.capture.iterators import is_iterator, position, twin
from unitify.capture.reachable import MISSING, PLAIN, Cell, Location, cells, is_array, is_same
from unitify.diagnostics import CaptureDiffers, UnitifyError


@dataclass(frozen=True)
class Change:
    """One changed entry. ``before``, ``after``: ``MISSING`` for none."""

    cell: Cell
    key: Any
    before: Any
    after: Any

    @property
    def location(self) -> Location:
        """The way to the entry."""
        return self.cell.location.then(self.cell.step, self.key)

    def __str__(self) -> str:
        return str(self.location)


@dataclass(frozen=True)
class Contents:
    """A tensor or an array and a copy of its numbers; a generator or an iterator and its state."""

    location: Location
    holder: Any
    copy: Any

    def is_changed(self) -> bool:
        """Has the content changed since it was copied?"""
        if not isinstance(self.holder, Tensor):
            return not _is_equal(_state_of(self.holder), self.copy)
        return not same(self.holder.detach(), self.copy)

    def put_back(self) -> None:
        """Write the copy back."""
        if isinstance(self.holder, Tensor):
            if self.holder.shape != self.copy.shape:
                self.holder.data = self.copy.clone()  # Its code resized it.
                return
            with torch.no_grad():
                self.holder.data.copy_(self.copy)
        else:
            _set_state(self.holder, self.copy)

    def drawn_from(self) -> str:
        """What the holder is, no tensor nor array, from which a call drew.

        Raises ``UnitifyError`` (U110) for one that no run can turn back.
        """
        if not is_iterator(self.holder):
            return f"{self.location}, a generator"
        if twin(self.holder) is None:
            problem = f"each call draws from {self.location}, and nothing turns that back"
            raise UnitifyError(CaptureDiffers(where=str(self.location), differences=problem))
        return f"{self.location}, an iterator"


class HookNumbers:
    """The numbers that torch gives to hooks, one after the other, over all modules.

    A call that registers hooks registers them under the same numbers when it is repeated.
    """

    def __init__(self) -> None:
        self.first = self.next = RemovableHandle.next_id

    def again(self) -> None:
        """Start where the numbers started."""
        self.next = max(self.next, RemovableHandle.next_id)
        RemovableHandle.next_id = self.first

    def go_on(self) -> None:
        """From now on, no number is given a second time."""
        RemovableHandle.next_id = max(self.next, RemovableHandle.next_id)


@dataclass(frozen=True)
class State:
    """All that a model, and the inputs of a call, can reach at one moment.

    ``entries``: of each container. ``contents``: copies of the numbers of buffers and other
    tensors and arrays, of parameters only on request; states of generators. ``iterators``: those of
    the entries that can be copied.
    """

    model: nn.Module
    inputs: Any
    entries: tuple[tuple[Cell, dict[Any, Any]], ...]
    contents: tuple[Contents, ...]
    iterators: tuple[tuple[Cell, dict[Any, Any], Any, Any], ...] = ()
    numbers: HookNumbers = field(default_factory=HookNumbers)

    @staticmethod
    def of(
        model: nn.Module,
        inputs: Any = (),
        weights: bool = False,
        numbers: bool = True,
        copies: Mapping[Tensor, Tensor] | None = None,
    ) -> State:
        """The state of ``model`` now.

        ``weights``: with copies of its parameters' numbers; ``numbers``: with any copies at all.
        ``copies``: those of parameters that exist already.
        """
        parameters = set() if weights else {id(p) for p in model.parameters()}
        known = {id(own): copy.detach() for own, copy in (copies or {}).items()}
        entries = tuple((cell, cell.entries()) for cell in cells(model, inputs))
        contents: dict[int, Contents] = {}
        for cell, held in entries if numbers else ():
            for key, value in held.items():
                is_done = id(value) in contents or id(value) in parameters
                if is_done or isinstance(value, PLAIN):
                    continue
                copied = known.get(id(value))
                copied = _copy(value) if copied is None else copied
                if copied is not None:
                    location = cell.location.then(cell.step, key)
                    contents[id(value)] = Contents(location, value, copied)
        iterators = (
            (cell, held, key, value)
            for cell, held in entries
            for key, value in held.items()
            if is_iterator(value) and not isinstance(cell.container, tuple)
            if twin(value) is not None
        )
        return State(model, inputs, entries, tuple(contents.values()), tuple(iterators))

    def changes(self) -> tuple[Change, ...]:
        """Changed entries of containers, and containers that got their first entries.

        A new container is one entry of the container that holds it.
        """
        found: list[Change] = []
        for cell, before in self.entries:
            after = cell.entries()
            if _is_identical(before, after):
                continue
            for key in dict.fromkeys([*before, *after]):
                a, b = before.get(key, MISSING), after.get(key, MISSING)
                if not is_same(a, b):
                    found.append(Change(cell, key, a, b))
        return tuple(found)

    def written(self) -> tuple[Contents, ...]:
        """Tensors whose numbers changed, and generators whose states changed."""
        return tuple(held for held in self.contents if held.is_changed())

    def lend(self) -> None:
        """From now on calls advance copies of the iterators, and count as no change."""
        for cell, before, key, own in self.iterators:
            before[key] = twin(own)
            cell.set(key, before[key])

    def put_back(self, for_good: bool = False) -> None:
        """Restore everything. ``for_good``: the iterators themselves, too."""
        self.numbers.again()
        for _, before, key, own in self.iterators:
            before[key] = own
        for cell, before in self.entries:
            after = cell.entries()
            if not _is_identical(before, after):
                cell.put(before)
        for held in self.written():
            held.put_back()
        if not for_good:
            self.lend()


def _is_identical(before: dict[Any, Any], after: dict[Any, Any]) -> bool:
    """Are they the same keys in the same order, with the same objects?"""
    return (
        len(before) == len(after)
        and all(map(operator.is_, before.values(), after.values()))
        and all(map(operator.eq, before, after))
    )


def kept(model: nn.Module, weights: bool = False) -> AbstractContextManager[State]:
    """Restore ``model`` afterwards, whatever happens inside. Yields its state.

    ``weights``: that of ``State.of``.
    """
    return restored(State.of(model, weights=weights))


@contextlib.contextmanager
def restored(state: State) -> Iterator[State]:
    """Restore ``state`` afterwards. It is that of now, or of a time since which it was restored."""
    try:
        state.lend()
        yield state
    finally:
        state.put_back(for_good=True)
        state.numbers.go_on()


@contextlib.contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Restore the mode of every module of ``models`` afterwards; some may mix modes."""
    flags = {m: m.training for model in models for m in model.modules()}
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextlib.contextmanager
def seeded(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, the generators of torch, Python and NumPy start at ``seed``. Restores them."""
    devices = {p.device.index or 0 for p in model.parameters() if p.is_cuda}
    before = random_states()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(before["Python"])
            if numpy and "NumPy" in before:
                numpy.random.set_state(before["NumPy"])


def random_states() -> dict[str, Any]:
    """States of the generators that Python code draws from: Python's own, and NumPy's if loaded."""
    found: dict[str, Any] = {"Python": random.getstate()}
    if numpy := sys.modules.get("numpy"):
        found["NumPy"] = numpy.random.get_state()
    return found


def drawn(before: dict[str, Any]) -> tuple[str, ...]:
    """The generators from which something was drawn since ``random_states`` gave ``before``."""
    return tuple(
        n for n, s in random_states().items() if n in before and not _is_equal(s, before[n])
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.is_meta or isinstance(value, FakeTensor) or _is_uninitialized(value):
            return None
        return value.detach().clone()
    return _state_of(value)


def held_twice(model: nn.Module, twin: nn.Module) -> tuple[tuple[Tensor, Tensor], ...]:
    """Pairs of parameters of both that hold the same numbers, each in memory of its own.

    Each of the two may serve as a copy of the other.
    """
    theirs = dict(twin.named_parameters(remove_duplicate=False))
    return tuple(
        (own, theirs[name])
        for name, own in model.named_parameters()
        if name in theirs and _is_double(own, theirs[name])
    )


def _is_double(a: Tensor, b: Tensor) -> bool:
    if not (type(a) is type(b) is nn.Parameter) or a.is_meta or a.layout != torch.strided:
        return False
    is_apart = a.untyped_storage()._cdata != b.untyped_storage()._cdata
    return is_apart and same(a.detach(), b.detach())


def _is_uninitialized(tensor: Tensor) -> bool:
    return torch.nn.parameter.is_lazy(tensor)


def _state_of(value: Any) -> Any:
    """The state of a generator or an iterator, or an array's numbers; None for anything else."""
    if is_iterator(value):
        return position(value)
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(value, numpy.random.Generator):
        return value.bit_generator.state
    if numpy and isinstance(value, numpy.random.RandomState):
        return value.get_state()
    if is_array(value):
        return value.copy()
    return None


def _set_state(generator: Any, state: Any) -> None:
    if is_iterator(generator):
        return  # Calls advance a copy, or it cannot be turned back.
    if is_array(generator):
        generator[...] = state
    elif isinstance(generator, torch.Generator | sys.modules["numpy"].random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


def _is_equal(a: Any, b: Any) -> bool:
    """Are two states of a generator equal? They may hold arrays."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_is_equal, a, b))
    if hasattr(a, "tobytes") and hasattr(b, "tobytes"):
        return bool(a.tobytes() == b.tobytes())
    return bool(torch.equal(a, b)) if isinstance(a, Tensor) else bool(a == b)
