"""Watches a model's own code as it runs: which module is running, and what it reads.

While a model is watched, every ``forward`` of its modules reports its begin and its end. Every
attribute that is read from a module, or from a plain object that a module holds, is noted with the
module that was running.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import Tensor, nn

from unitify.capture.effects import finds
from unitify.capture.named import Read, class_reads, is_open
from unitify.capture.reachable import PLAIN, Cell, Location, cells

#: Attributes of every module that a graph follows, or that hold its tensors and submodules.
FOLLOWED = frozenset(
    {"forward", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
)

#: The attribute that stands for which attributes an object has.
NAMESPACE = "__dict__"
#: The code of torch that calls a ``forward``.
_CALLS = (nn.Module._call_impl.__code__, nn.Module._wrapped_call_impl.__code__)
#: Called where a forward begins: the module, its arguments and keyword arguments.
Begins = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
#: Called where a forward ends, also by an exception.
Ends = Callable[[nn.Module], None]


@dataclass
class Watch:
    """``running``: the modules whose forward runs, outermost first; ``called``: those of them that
    were called, not their ``forward`` alone. ``reads``: each entry that was
    read, with the modules that were innermost then (None: the code around the model).
    ``containers``: those that were read, by identity, with the same. ``outside``: those of the
    entries that the model shares with other code: of objects in closures and globals, of classes.
    """

    running: list[nn.Module] = field(default_factory=list)
    called: list[nn.Module] = field(default_factory=list)
    reads: dict[Location, set[nn.Module | None]] = field(default_factory=dict)
    containers: dict[int, tuple[Any, set[nn.Module | None]]] = field(default_factory=dict)
    outside: dict[Read, set[nn.Module | None]] = field(default_factory=dict)

    @property
    def innermost(self) -> nn.Module | None:
        """The module whose code is running."""
        return self.running[-1] if self.running else None


@contextlib.contextmanager
def watched(
    model: nn.Module, begins: Begins | None = None, ends: Ends | None = None
) -> Iterator[Watch]:
    """Watch ``model`` inside; ``begins`` and ``ends`` are called around each forward."""
    watch = Watch()
    modules = {id(m) for m in model.modules()}
    owners = {id(c.owner): c for c in cells(model) if c.owner is not None}
    #: Those that a copy of the model shares: a function leads to them, or a class.
    shared = {
        of
        for of, cell in owners.items()
        if not finds(cell.location.then(cell.step, NAMESPACE), cell, model)
    }
    #: Objects whose classes cannot be changed, so that their reads go unnoticed.
    silent: set[int] = set()

    def read_of(cell: Cell, name: str) -> Read:
        where = str(cell.location.then("attribute", name))
        return Read(where, cell.container, name, id(cell.owner))

    def note(owner: Any, name: str, value: Any = None) -> None:
        cell = owners.get(id(owner))
        is_special = name.startswith("__") and name != NAMESPACE
        if cell is None or name in FOLLOWED or is_special:
            return
        # A graph follows the mode of the module that is called, and no other's.
        if name == "training" and (not watch.called or owner is watch.called[-1]):
            return
        location = cell.location.then("attribute", name)
        watch.reads.setdefault(location, set()).add(watch.innermost)
        outside = [read_of(cell, name)] if id(owner) in shared else []
        if isinstance(value, type):
            outside.extend(class_reads(value))
        for read in outside:
            watch.outside.setdefault(read, set()).add(watch.innermost)
        if isinstance(value, (*PLAIN, Tensor, MethodType)):
            return
        _, readers = watch.containers.setdefault(id(value), (value, set()))
        is_known = watch.innermost in readers
        readers.add(watch.innermost)
        if id(value) in silent and not is_known:
            # Its reads go unnoticed, so that each attribute counts as read.
            for entry, held in owners[id(value)].container.items():
                note(value, entry, held)
            note(value, NAMESPACE)

    def forward_of(module: nn.Module, own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if begins is not None:
                begins(module, args, kwargs)
            is_called = sys._getframe(1).f_code in _CALLS
            watch.running.append(module)
            if is_called:
                watch.called.append(module)
            try:
                return own(*args, **kwargs)
            finally:
                if ends is not None:
                    ends(module)
                watch.running.pop()
                if is_called:
                    watch.called.pop()

        return forward

    def reading(own: Any) -> Any:
        def read(self: Any, name: str) -> Any:
            try:
                value = own(self, name)
            except AttributeError:
                # A module looks in its tables next.
                if not isinstance(self, nn.Module):
                    note(self, name)
                raise
            if name == "forward" and id(self) in modules:
                return forward_of(self, value)
            # torch's own code looks up what a module holds.
            if name != NAMESPACE or is_open(sys._getframe(1)):
                note(self, name, value)
            return value

        return read

    def missing(own: Any) -> Any:
        def read(self: Any, name: str) -> Any:
            try:
                return own(self, name)
            except AttributeError:
                note(self, name)
                raise

        return read

    plain = [c.owner for c in owners.values() if not isinstance(c.owner, nn.Module)]
    kinds = {type(owner) for owner in plain}
    with contextlib.ExitStack() as stack:
        for kind in (nn.Module, *kinds):
            try:
                stack.enter_context(_exchanged(kind, "__getattribute__", reading))
            except TypeError:
                silent.update(id(owner) for owner in plain if type(owner) is kind)
        for cell in map(owners.__getitem__, silent & shared):
            reads = [read_of(cell, name) for name in cell.container]
            watch.outside.update((read, set(model.modules())) for read in reads)
        stack.enter_context(_exchanged(nn.Module, "__getattr__", missing))
        yield watch


@contextlib.contextmanager
def _exchanged(kind: Any, name: str, around: Callable[[Any], Any]) -> Iterator[None]:
    """A method of a class with ``around`` put around it.

    Raises ``TypeError`` for a class that cannot be changed.
    """
    has_own = name in vars(kind)
    own = getattr(kind, name)
    setattr(kind, name, around(own))
    try:
        yield
    finally:
        if has_own:
            setattr(kind, name, own)
        else:
            delattr(kind, name)


#: Tables of a module's own hooks, which run around its ``forward``.
HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name and "state_dict" not in name)


@contextlib.contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """``module`` without its own hooks inside; those of its submodules stay."""
    held = {name: vars(module)[name] for name in HOOKS if name in vars(module)}
    for name, table in held.items():
        vars(module)[name] = type(table)()
    try:
        yield
    finally:
        vars(module).update(held)


def call_of(module: nn.Module) -> Callable[..., Any]:
    """The module's code with its own hooks around it, if it has any.

    Hooks on every module run around the transformed module already.
    """
    has_own = any(vars(module).get(name) for name in HOOKS)
    is_plain = type(module).__call__ is nn.Module.__call__
    return module.forward if is_plain and not has_own else module.__call__


def share_hooks(owner: nn.Module, user: nn.Module) -> None:
    """Let the hooks of ``owner`` run around ``user``, too; both share one set."""
    user.__dict__.update({name: vars(owner)[name] for name in HOOKS if name in vars(owner)})
