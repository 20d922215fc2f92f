"""Observes what a call of a model does beside returning.

The model runs twice in a row in each of its modes. The changes of its state show which of its
modules a graph can replace:

- A tensor that each call stores (a loss kept on a module, an entry added to a dict that was passed
  in) is a result. The recording returns it, and the call stores it.
- What only the first call makes (a table, a buffer registered late), the same for any input, is
  there from the start.
- Everything else (a counter, a growing list, a number drawn by Python) is state that no graph
  keeps. The module that changes it, and each module that reads it, stays Python.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.effects import INPUTS, finds
from unitify.capture.example import call_quietly, copied, mapped, resampled, widened
from unitify.capture.exporting import without_cache
from unitify.capture.modes import switches_itself
from unitify.capture.named import Read
from unitify.capture.reachable import MISSING, PLAIN, Location, is_array, is_same
from unitify.capture.relaid import following, image_weights
from unitify.capture.same_value import is_same_value
from unitify.capture.state import Change, HookNumbers, State, drawn, kept, random_states, seeded
from unitify.capture.surroundings import noted
from unitify.capture.tensor_questions import Asks
from unitify.capture.watching import watched


@dataclass(frozen=True)
class Observed:
    """What calls of a model do beside returning.

    - ``unfit``: modules that no graph can replace, and why; None is the code around the model's own
      (its hooks)
    - ``made``: what the first call makes for good; ``changing``: what every call stores again;
      ``touched``: all that calls change
    - ``reads``: entries of modules, and of what surrounds them, with the modules that read them
    - ``layouts``: modules whose code depends on the memory layout of tensors
    - ``asks``: what else code asks tensors
    - ``has_modes``: may calls in train mode differ from calls in eval mode?
    - ``numbers``: those under which calls registered hooks
    """

    unfit: Mapping[nn.Module | None, str] = field(default_factory=dict)
    made: tuple[Location, ...] = ()
    changing: tuple[Location, ...] = ()
    touched: tuple[Location, ...] = ()
    reads: Mapping[Location | Read, frozenset[nn.Module | None]] = field(default_factory=dict)
    layouts: frozenset[nn.Module | None] = frozenset()
    asks: Asks = field(default_factory=Asks)
    has_modes: bool = True
    numbers: HookNumbers = field(default_factory=HookNumbers)


def observe(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Observed:
    """Run ``model`` on its example in both modes, and restore it afterwards.

    A mode in which the model does not run is left out. If it runs in neither, nothing is known, and
    its recording says why.
    """
    unfit: dict[nn.Module | None, str] = {}
    made: dict[Location, None] = {}
    changing, touched = made.copy(), made.copy()
    reads: dict[Location | Read, set[nn.Module | None]] = {}
    layouts: set[nn.Module | None] = set()
    asks, laid = Asks(), list[Any]()
    in_modes: list[bool] = []
    with kept(model, weights=True) as before, without_cache(model), seeded(model):
        for training in (model.training, not model.training):
            before.put_back()
            with contextlib.suppress(_Fails):
                run = _Observation(model, (args, kwargs), before, training)
                unfit = {**run.unfit, **unfit}
                made.update(dict.fromkeys(run.made))
                changing.update(dict.fromkeys(run.changing))
                touched.update(dict.fromkeys(run.touched))
                layouts |= run.around.layouts
                laid = laid or run.around.laid
                asks = asks.joined(run.around)
                in_modes.append(run.around.reads_mode)
                for where, readers in (*run.reads.items(), *run.read_around()):
                    reads.setdefault(where, set()).update(readers)
        followed = following(model, (args, kwargs), before, laid)
    for where in image_weights(model) if followed else ():
        reads.setdefault(where, set()).update(followed)
    who_reads = {where: frozenset(readers) for where, readers in reads.items()}
    has_modes = in_modes != [False, False] or any(map(switches_itself, model.modules()))
    return Observed(
        unfit, tuple(made), tuple(changing), tuple(touched), who_reads,
        frozenset(layouts | followed), asks, has_modes, before.numbers,
    )  # fmt: skip


class _Fails(Exception):
    """The model does not run."""


class _Observation:
    """Two calls in a row in one mode, and more calls to find the modules behind each change."""

    def __init__(
        self,
        model: nn.Module,
        example: tuple[tuple[Any, ...], dict[str, Any]],
        before: State,
        training: bool,
    ) -> None:
        self.model, self.before, self.training = model, before, training
        self.example = example
        self.unfit: dict[nn.Module | None, str] = {}
        self.paths = {"the inputs", *(name for name, _ in model.named_modules())}
        self._switch()
        randomness = random_states()
        first = State.of(model)
        inputs = _copies(self.example)
        with watched(model) as watch, noted(model, lambda: watch.innermost, inputs) as self.around:
            self._call(inputs, copies=False)
        self.reads, self.containers, self.outside = watch.reads, watch.containers, watch.outside
        once = {str(c): c for c in first.changes()}
        inputs = _copies(self.example)
        second = State.of(model, inputs)
        self._call(inputs, copies=False)
        again = {str(c): c for c in second.changes()}
        written = before.written()
        self.changes = (*once.values(), *again.values())
        self.touched = tuple(c.location for c in self.changes)
        troubles = {where: c for where, c in again.items() if not self._is_handed_over(c)}
        self.changing = tuple(c.location for w, c in again.items() if w not in troubles)
        once = {where: c for where, c in once.items() if where not in again and not _is_equal(c)}
        # A container that keeps changing is no table.
        restless = {str(c.cell.location) for c in troubles.values()}
        once = {w: c for w, c in once.items() if str(c.cell.location) not in restless}
        depends = self._depending(once, resampled(*self.example))
        made = {where: c for where, c in once.items() if where not in depends}
        # A value that differs for another batch is no constant; it may follow from sizes.
        for other in widened(*self.example):
            with contextlib.suppress(_Fails):
                follow = self._depending(made, other)
                depends |= self._staying(follow, other)
                made = {where: c for where, c in made.items() if where not in follow}
        self._blame({**depends, **troubles})
        for held in second.written():
            if is_array(held.holder):
                self._blame_for(f"writes into {held.location}, an array", held.location)
            elif not isinstance(held.holder, Tensor):
                self._blame_for(f"draws from {held.drawn_from()}", held.location)
        weights = {id(p) for p in model.parameters()}
        for held in written:
            if id(held.holder) in weights:
                self._blame_for(f"writes into its parameter {held.location}", held.location)
                made = {}  # It may tell that the parameter has its numbers.
        self.unfit = {**self.around.unheld, **self.unfit}
        # Where code stays Python, its own first call makes what it makes.
        own = (change.location for change in made.values())
        self.made = tuple(where for where in own if self._owner(where) not in self.unfit)
        if names := drawn(randomness):
            self._blame_drawing(names)

    def read_around(self) -> Iterator[tuple[Location | Read, set[nn.Module | None]]]:
        """Reads of the surroundings that calls do not change themselves."""
        changed = {(id(c.cell.namespace), c.key) for c in self.changes}
        changing = {id(c.cell.container) for c in self.changes}
        locations = {str(c.location) for c in self.changes}
        yield from self.around.of_tensors.items()
        for read, readers in (*self.around.reads.items(), *self.outside.items()):
            is_changed = (id(read.namespace), read.key) in changed or read.name in locations
            if not is_changed and id(read.now()) not in changing:
                yield read, readers

    def _switch(self) -> None:
        if self.model.training != self.training:
            try:
                self.model.train(self.training)
            except Exception as error:
                raise _Fails from error

    def _call(self, inputs: Any, copies: bool = True) -> None:
        try:
            call_quietly(self.model, *(_copies(inputs) if copies else inputs))
        except Exception as error:
            raise _Fails from error

    def _depending(self, once: dict[str, Change], inputs: Any) -> dict[str, Change]:
        """What the first call made that differs for these ``inputs``, or was drawn at random."""
        if not once:
            return {}
        held = {where: _now(change) for where, change in once.items()}
        # A tensor with a history depends on parameters, and trains them.
        trained = {where: once[where] for where, value in held.items() if _has_history(value)}
        self.before.put_back()
        self._switch()
        with seeded(self.model, seed=1):
            self._call(inputs, copies=False)
        return trained | {w: c for w, c in once.items() if not is_same_value(held[w], _now(c))}

    def _staying(self, follow: dict[str, Change], other: Any) -> dict[str, Change]:
        """What follows from the sizes of the first call, or of the largest, and not of each.

        The model has just run on ``other``, from the start.
        """
        if not follow:
            return {}

        def after(inputs: Any) -> dict[str, Any]:
            self._call(inputs)
            return {where: _now(change) for where, change in follow.items()}

        of_other = {where: _now(change) for where, change in follow.items()}
        second = after(self.example)
        self.before.put_back()
        self._switch()
        first, then = after(self.example), after(other)
        return {
            where: change
            for where, change in follow.items()
            if not is_same_value(second[where], first[where])
            or not is_same_value(then[where], of_other[where])
        }

    def _blame(self, troubles: dict[str, Change]) -> None:
        """Find the modules that make these changes, and the modules that read them."""
        if not troubles:
            return
        writers: dict[str, set[nn.Module | None]] = {where: set() for where in troubles}
        seen: dict[str, Any] = {}

        def look(module: nn.Module | None) -> None:
            for where, change in troubles.items():
                now = _now(change)
                if not is_same(seen[where], now):
                    seen[where] = now
                    writers[where].add(module)

        self.before.put_back()
        self._switch()
        for _ in range(2):
            seen.update((where, _now(change)) for where, change in troubles.items())
            self._call_looking(look)
        for where, change in troubles.items():
            for module in writers[where] or {self._owner(change.location)}:
                self.unfit.setdefault(module, f"its call changes {where}, which no graph keeps")
            for reader in self._readers(change):
                self.unfit.setdefault(reader, f"it reads {where}, which a call changes")

    def _readers(self, change: Change) -> set[nn.Module]:
        """The modules that read an entry: by its own name, or through what holds it."""
        found = {
            reader
            for location, readers in self.reads.items()
            if location.leads_to(change.location)
            for reader in readers
        }
        for container, readers in self.containers.values():
            if any(cell is change.cell.container for cell in _inside(container)):
                found |= readers
        return {reader for reader in found if reader is not None}

    def _is_handed_over(self, change: Change) -> bool:
        """Can a recording return what a call stores there?"""
        return _is_equal(change) or (
            change.location.root in self.paths and _is_kept(change) and self._is_found(change)
        )

    def _is_found(self, change: Change) -> bool:
        """Can a call find this location in a copy of the module? Not in a closure of a hook."""
        is_input = change.location.root == INPUTS
        return is_input or finds(change.location, change.cell, self.model)

    def _blame_for(self, what: str, location: Location) -> None:
        readers = [r for where, r in self.reads.items() if where.leads_to(location)]
        found = {r for group in readers for r in group if r is not None}
        for module in found or {self._owner(location)}:
            self.unfit.setdefault(module, f"it {what}")

    def _blame_drawing(self, names: Iterable[str]) -> None:
        reason = f"it draws from the random generator of {' and of '.join(names)}"
        seen = random_states()

        def look(module: nn.Module | None) -> None:
            nonlocal seen
            if drawn(seen):
                seen = random_states()
                self.unfit.setdefault(module, reason)

        self._call_looking(look)

    def _call_looking(self, look: Callable[[nn.Module | None], None]) -> None:
        """Call the model, and ``look`` whenever a forward begins or ends.

        ``look`` gets the module whose own code ran until then.
        """
        stack: list[nn.Module] = []

        def begins(module: nn.Module, *_: Any) -> None:
            look(stack[-1] if stack else None)
            stack.append(module)

        def ends(_module: nn.Module) -> None:
            look(stack.pop())

        with watched(self.model, begins, ends):
            self._call(self.example)
        look(None)

    def _owner(self, location: Location) -> nn.Module:
        """The module whose attribute leads to a location; the model itself for anything else."""
        named: dict[str, nn.Module] = dict(self.model.named_modules())
        return named.get(location.root, self.model)


def _copies(inputs: Any) -> Any:
    return mapped(copied, inputs)


def _now(change: Change) -> Any:
    return change.cell.entries().get(change.key, MISSING)


def _inside(container: Any) -> Iterator[Any]:
    """A container, and those that it holds."""
    pending, seen = [container], set()
    while pending:
        held = pending.pop()
        if id(held) in seen or not isinstance(held, dict | list | tuple | set | deque):
            continue
        seen.add(id(held))
        yield held
        pending.extend(held.values() if isinstance(held, dict) else held)


def _is_kept(change: Change) -> bool:
    """Does a call store tensors there, in the structure of before?"""
    first = change.location.steps[0]
    if change.after is MISSING or first.key == "_parameters":
        return False
    leaves, spec = pytree.tree_flatten(change.after)
    if not all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves):
        return False
    if change.location.root == "the inputs":
        return True
    before, other = pytree.tree_flatten(change.before)
    return spec == other and all(
        (isinstance(a, Tensor) and isinstance(b, Tensor)) or is_same(a, b)
        for a, b in zip(before, leaves, strict=True)
    )


def _is_equal(change: Change) -> bool:
    """Is the entry another object, equal to the one of before (a tuple of sizes)?"""
    if MISSING in (change.before, change.after):
        return False
    return not _holds_tensors(change.after) and is_same_value(change.before, change.after)


def _has_history(value: Any) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return any(tensor.grad_fn is not None for tensor in tensors)


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
