"""What a graph was recorded with: is it still what it was?

A recording holds the numbers, flags, containers and methods that the model's code read. Whoever
turns one on the finished module (``dropout.p = 0``), or around it (a global, a switch of torch),
means the code to read it. So each call looks whether all of them are as they were, which takes some
50 ns each.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import repeat
from operator import contains, getitem, is_, is_not
from typing import Any

import torch.nn.modules.module
from torch import Tensor, fx, nn

from unitify.capture.effects import place
from unitify.capture.places import MISSING, Location, is_array, is_same
from unitify.capture.surroundings import Answers, Read, layout
from unitify.module.types import Types

#: Containers with more entries are compared by their number alone.
_MANY = 256
#: Hooks on every module that there is. Those that are registered later fire in code alone.
_GLOBAL_HOOKS = {
    name: held
    for name, held in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(held, dict)
}


class _Names:
    """Names, each in its namespace. One list a column: a look is a loop that runs in C."""

    def __init__(self) -> None:
        self.namespaces: list[Any] = []
        self.names: list[Any] = []
        self.held: list[Any] = []
        self.places: list[Any] = []
        #: Has an equal container taken the place of another, as ``torch.export`` does it?
        self.is_exchanged = False

    def add(self, namespace: Any, name: Any, held: Any, where: Any) -> None:
        """``where``: how to say it."""
        self.namespaces.append(namespace)
        self.names.append(name)
        self.held.append(held)
        self.places.append(where)

    def turned(self) -> Any:
        """Where the first one is said that is another now; an equal number is the same."""
        try:
            now = map(getitem, self.namespaces, self.names)
            if all(map(is_, now, self.held)):
                return None
        except KeyError:
            pass
        for index, namespace in enumerate(self.namespaces):
            now = namespace.get(self.names[index], MISSING)
            if now is not self.held[index]:
                if not is_same(now, self.held[index]):
                    if not _are_alike(now, self.held[index]):
                        return self.places[index]
                    self.is_exchanged = True
                self.held[index] = now
        return None


class Knobs:
    """What the graph of a tree of modules holds, and what it was.

    ``reads``: what the code of modules reads. ``left``: where calls leave something. ``part``: the
    module on whose tensors the graph runs, if not the tree. ``before``: those of what this one is a
    copy of; what was turned there is turned here; ``had_weights``: and did all of its parameters
    have to be there? ``within``: of the submodule at this path alone,
    whose own hooks run around its graph.
    """

    def __init__(
        self,
        tree: nn.Module,
        reads: Iterable[Location | Read],
        left: Sequence[Location] = (),
        part: nn.Module | None = None,
        before: Knobs | None = None,
        within: str = "",
        had_weights: bool = True,
    ) -> None:
        top = tree.get_submodule(within)
        self.types: Types = Types(part or top, None if before is None else before.types.recorded)
        self.was_turned = None if before is None else before.turned_attribute(had_weights)
        self._look = partial(self._note_all, tree, top, reads, left, within)
        self._look()

    def _note_all(
        self,
        tree: nn.Module,
        top: nn.Module,
        reads: Iterable[Location | Read],
        left: Sequence[Location],
        within: str,
    ) -> None:
        """Note what everything is now."""
        #: Names that are there, and names that are not.
        self.present, self.absent = _Names(), _Names()
        #: A question, the answer, how to say it.
        self.questions: list[tuple[Callable[[], Any], Any, Any]] = []
        #: A list, its entries; any other container, how many it has; an array, its numbers.
        self.lists: list[tuple[Any, list[Any], Any]] = []
        self.sized: list[Any] = []
        self.sizes: list[int] = []
        self.sized_places: list[Any] = []
        self.arrays: list[tuple[Any, bytes, Any]] = []
        #: Modules and their classes; the names under which their tables have a tensor.
        self.modules = list(top.modules())
        self.kinds = [type(module) for module in self.modules]
        self.tensors = _Names()
        self.seen: set[Any] = set()
        for read in reads:
            if isinstance(read, Location) and any(map(read.leads_to, left)):
                continue
            try:
                self._note_read(tree, read)
            except (LookupError, AttributeError, TypeError):
                continue  # Not in the tree: no one finds it there.
        for name, hooks in _GLOBAL_HOOKS.items() if top is tree or len(self.modules) > 1 else ():
            self._enter(hooks, f"torch.nn.modules.module.{name}")
        for path, module in top.named_modules(prefix=within):
            self._note_module(module, Location(path), has_forward=not within or path != within)

    def _note_module(self, module: nn.Module, where: Location, has_forward: bool) -> None:
        forward = where.then("attribute", "forward")
        self._enter(module._modules, where.then("attribute", "_modules"))
        if has_forward:
            self._note(vars(module), "forward", forward)
        if isinstance(module, torch.jit.ScriptModule):
            return
        if not isinstance(module, fx.GraphModule):
            # Its code is made of its graph, where torch likes as late as at its first call.
            self._note_class(type(module), "forward", forward)
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    self.tensors.add(table, name, tensor, where.then("attribute", name))

    def _note_read(self, tree: nn.Module, read: Location | Read) -> None:
        if isinstance(read, Read):
            if isinstance(read.namespace, Answers):
                self.questions.append((read.key, read.now(), read.name))
            else:
                self._note(read.namespace, read.key, read.name)
            return
        if read.steps[0].key in ("_parameters", "_buffers"):
            self._note_trait(tree, read)
            return
        container, key = place(read, tree)
        self._note(container, key, read)
        if len(read.steps) == 1 and key not in container:
            self._note_class(type(tree.get_submodule(read.root)), key, read)

    def _note_trait(self, tree: nn.Module, read: Location) -> None:
        """What a tensor is asked about itself."""
        table, name = place(Location(read.root, read.steps[:-1]), tree)
        trait = read.steps[-1].key

        def ask() -> Any:
            tensor: Tensor = table[name]
            return layout(tensor) if trait == "layout" else getattr(tensor, trait)

        self.questions.append((ask, ask(), read))

    def _note(self, namespace: Any, key: Any, where: Any) -> None:
        if not hasattr(namespace, "keys") or (id(namespace), key) in self.seen:
            return
        self.seen.add((id(namespace), key))
        held = namespace.get(key, MISSING)
        (self.absent if held is MISSING else self.present).add(namespace, key, held, where)
        self._enter(held, where)

    def _note_class(self, kind: type, name: str, where: Any) -> None:
        """A name that was read may be the class's, or that of one before or behind it."""
        for base in kind.__mro__:
            if base in (nn.Module, object):
                return
            if (base, name) not in self.seen:
                self.seen.add((base, name))
                held = vars(base).get(name, MISSING)
                names = self.absent if held is MISSING else self.present
                names.add(vars(base), name, held, where)

    def _enter(self, value: Any, where: Any) -> None:
        if id(value) in self.seen:
            return
        self.seen.add(id(value))
        if is_array(value):
            self.arrays.append((value, value.tobytes(), where))
        elif isinstance(value, list) and len(value) <= _MANY:
            self.lists.append((value, list(value), where))
            for index, item in enumerate(value):
                self._enter(item, _then(where, index))
        elif isinstance(value, dict | list | set | deque):
            self.sized.append(value)
            self.sizes.append(len(value))
            self.sized_places.append(where)
            if isinstance(value, dict) and len(value) <= _MANY:
                for key in value:
                    self._note(value, key, _then(where, key))

    def turned(self, has_weights: bool = True, by_autocast: bool = True) -> str | None:
        """The first that is another than it was, as it prints; None where all are the same.

        ``has_weights``: every parameter has to be there. ``by_autocast``: does what it does to
        types count, or is the graph run under it?
        """
        changed = self.types.changed()
        if changed is not None and (by_autocast or changed != "autocast"):
            return f"the type of {changed}"
        found = self.turned_attribute(has_weights)
        return None if found is None else str(found)

    def turned_attribute(self, has_weights: bool = True) -> Any:
        """The first that is another than it was, number types aside."""
        return next(self._turned(has_weights), None)

    def _turned(self, has_weights: bool) -> Iterator[Any]:
        if self.was_turned is not None:
            yield self.was_turned
        if (where := self.present.turned()) is not None:
            yield where
        if any(map(contains, self.absent.namespaces, self.absent.names)):
            yield self.absent.turned()
        for question, answer, where in self.questions:
            try:
                now = question()
            except (LookupError, AttributeError):
                now = MISSING
            if now is not answer and not is_same(now, answer) and not _is_equal(now, answer):
                yield where
        if not all(map(is_, map(type, self.modules), self.kinds)):
            for module, kind in zip(self.modules, self.kinds, strict=True):
                if not _runs_as(type(module), kind):  # type: ignore[arg-type]
                    yield f"the class of a {kind.__name__}"
        if has_weights:
            tables, names = self.tensors.namespaces, self.tensors.names
            if not all(map(is_not, map(dict.get, tables, names), repeat(None))):
                yield next(self._lacking())
        for held, entries, where in self.lists:
            if len(held) != len(entries) or not all(map(is_same, held, entries)):
                yield where
        if [*map(len, self.sized)] != self.sizes:
            sizes = zip(map(len, self.sized), self.sizes, self.sized_places, strict=True)
            yield next(where for size, expected, where in sizes if size != expected)
        for array, numbers, where in self.arrays:
            if array.tobytes() != numbers:
                yield where
        if self.present.is_exchanged:
            # From now on the containers that are there are what may be turned.
            self._look()

    def _lacking(self) -> Iterator[Any]:
        held = self.tensors
        for table, name, where in zip(held.namespaces, held.names, held.places, strict=True):
            if table.get(name) is None:
                yield where


@lru_cache(maxsize=4096)
def _runs_as(now: Hashable, kind: Hashable) -> bool:
    """Has a class what ``kind`` has, but for what every module has? A wrapped block's has."""
    if now is kind:
        return True
    assert isinstance(now, type)
    assert isinstance(kind, type)
    own = {name for base in kind.__mro__ if base not in nn.Module.__mro__ for name in vars(base)}
    return issubclass(now, kind) and all(
        inspect.getattr_static(now, name) is inspect.getattr_static(kind, name)
        for name in {*own, "forward"}
        if not name.startswith("__")
    )


def reads_by_path(reads: Mapping[Location | Read, frozenset[str]]) -> dict[str, list[Any]]:
    """What is read inside of each submodule, from what is read with the paths of its readers."""
    found: dict[str, dict[Any, None]] = {}
    for read, readers in reads.items():
        for reader in readers:
            while reader:
                found.setdefault(reader, {})[read] = None
                reader = reader.rpartition(".")[0]
    return {path: list(held) for path, held in found.items()}


def turned_now(knobs: Knobs, has_weights: bool, by_autocast: bool) -> str | None:
    """``knobs.turned``; compiled code asks once, as it is compiled."""
    if torch.compiler.is_compiling():
        compiled: str | None = _turned_once(knobs, has_weights, by_autocast)
        return compiled
    return knobs.turned(has_weights, by_autocast)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _turned_once(knobs: Knobs, has_weights: bool, by_autocast: bool) -> str | None:
    return knobs.turned(has_weights, by_autocast)


def _are_alike(a: Any, b: Any) -> bool:
    """Are these the same, or containers of one type with the same contents?"""
    if a is b or is_same(a, b):
        return True
    if type(a) is not type(b) or not isinstance(a, dict | list | tuple | deque):
        return False
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(key in b and _are_alike(value, b[key]) for key, value in a.items())
    return all(map(_are_alike, a, b))


def _then(where: Any, key: Any) -> Any:
    return where.then("item", key) if isinstance(where, Location) else f"{where}[{key!r}]"


def _is_equal(now: Any, answer: Any) -> bool:
    """Are two answers equal that are another object each time (a device, a tuple)?"""
    is_plain = isinstance(answer, torch.device | torch.dtype | tuple)
    return is_plain and type(now) is type(answer) and bool(now == answer)
