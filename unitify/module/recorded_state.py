"""The Python state that a recording depends on: has it changed?

A recording contains the numbers, flags, containers and methods that the model's code read. A user
who changes one on the finished module (``dropout.p = 0``), or around it (a global, a flag of
torch), expects an effect. So each call compares all of them, in about 50 ns each.
"""

from __future__ import annotations

import inspect
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import repeat
from operator import contains, getitem, is_, is_not
from typing import Any

import torch.nn.modules.module
from torch import Tensor, fx, nn

from unitify.capture.effects import holder_of, owner_of
from unitify.capture.layouts import layout
from unitify.capture.named import Answers, Read
from unitify.capture.reachable import MISSING, Location, inside, is_array, is_same
from unitify.capture.surroundings import function_modes
from unitify.capture.tensor_questions import LISTED, computes_itself
from unitify.capture.watching import NAMESPACE
from unitify.module.odd_modes import FOLLOWING, is_in_mode, odd_modes
from unitify.module.of_class import keeps_values, runs_as
from unitify.module.types import Types

#: For messages.
_MODES = "the stack of torch function modes"
#: Containers with more entries are compared by their length alone, to bound the time of a call.
_MANY = 256
#: Python's own arrays.
_BYTES = (bytearray, memoryview, array)
#: Global hooks on modules. One that is registered after the recording is not in the graph.
_GLOBAL_HOOKS = {
    name: held
    for name, held in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(held, dict)
}


class _Names:
    """Names in namespaces, with their values. One list a column, so a comparison loops in C."""

    def __init__(self) -> None:
        self.namespaces: list[Any] = []
        self.names: list[Any] = []
        self.held: list[Any] = []
        self.where: list[Any] = []
        #: Did an equal container replace another one? ``torch.export`` does that.
        self.is_exchanged = False

    def add(self, namespace: Any, name: Any, held: Any, where: Any) -> None:
        """``where``: the name for messages."""
        self.namespaces.append(namespace)
        self.names.append(name)
        self.held.append(held)
        self.where.append(where)

    def changed(self) -> Any:
        """``where`` of the first changed value; None without one. Equal numbers are the same."""
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
                        return self.where[index]
                    self.is_exchanged = True
                self.held[index] = now
        return None


class RecordedState:
    """The state that the graph of a tree of modules depends on, and its recorded values.

    ``reads``: the state that the code of modules reads. ``left``: locations that calls write.
    ``part``: the module on whose tensors the graph runs, if not the tree. ``before``: the state of
    the module of which this is a copy; its changes count here, too. ``had_weights``: did that
    module need all of its parameters? ``within``: only the submodule at this path, whose own hooks
    run around its graph.
    """

    def __init__(
        self,
        tree: nn.Module,
        reads: Iterable[Location | Read],
        left: Sequence[Location] = (),
        part: nn.Module | None = None,
        before: RecordedState | None = None,
        within: str = "",
        had_weights: bool = True,
    ) -> None:
        top = tree.get_submodule(within)
        self.types: Types = Types(part or top, None if before is None else before.types.recorded)
        self.was_changed = None if before is None else before.changed_attribute(had_weights)
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
        """Note the present values."""
        #: Names that exist, and names that do not.
        self.present, self.absent = _Names(), _Names()
        #: A function, its result, and its name for messages.
        self.questions: list[tuple[Callable[[], Any], Any, Any]] = []
        #: Lists with their entries, dicts with their keys, large and other containers with their
        #: lengths, arrays with their bytes.
        self.lists: list[tuple[Any, list[Any], Any]] = []
        self.dicts: list[tuple[Any, list[Any], Any]] = []
        self.sized: list[Any] = []
        self.sizes: list[int] = []
        self.sized_where: list[Any] = []
        self.arrays: list[tuple[Any, bytes, Any]] = []
        #: Modules and their classes, and the names of their tensors.
        self.modules = list(top.modules())
        self.kinds = [type(module) for module in self.modules]
        self.tensors = _Names()
        #: Pairs of places that hold one tensor: table and name of each, and the name for messages.
        self.ties: list[tuple[dict[str, Any], str, dict[str, Any], str, Any]] = []
        first: dict[int, tuple[dict[str, Any], str]] = {}
        self.seen: set[Any] = set()
        for read in reads:
            if isinstance(read, Location) and any(map(read.leads_to, left)):
                continue
            try:
                self._note_read(tree, read)
            except (LookupError, AttributeError, TypeError):
                continue  # It is not in the tree, so code cannot read it there.
        for name, hooks in _GLOBAL_HOOKS.items() if top is tree or len(self.modules) > 1 else ():
            self._enter(hooks, f"torch.nn.modules.module.{name}")
        self._ask(function_modes, _MODES)
        odd = odd_modes(top)
        for path, module in top.named_modules(prefix=within):
            where = Location(path)
            self._note_module(module, where, has_forward=not within or path != within)
            if module in odd:
                mode = where.then("attribute", "training")
                self._ask(partial(is_in_mode, module, top, odd[module]), mode)
        held = self.tensors
        self.tensor_kinds = set(map(type, held.held))
        for table, name, tensor, where in zip(
            held.namespaces, held.names, held.held, held.where, strict=True
        ):
            if id(tensor) in first:
                self.ties.append((*first[id(tensor)], table, name, where))
            first.setdefault(id(tensor), (table, name))

    def _note_module(self, module: nn.Module, where: Location, has_forward: bool) -> None:
        forward = where.then("attribute", "forward")
        self._enter(module._modules, where.then("attribute", "_modules"))
        if has_forward:
            self._note(vars(module), "forward", forward)
        if isinstance(module, torch.jit.ScriptModule):
            return
        if not isinstance(module, fx.GraphModule):
            # Its class gets code generated from its graph, possibly at the first call.
            self._note_class(type(module), "forward", forward)
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    self.tensors.add(table, name, tensor, where.then("attribute", name))

    def _note_read(self, tree: nn.Module, read: Location | Read) -> None:
        if isinstance(read, Read):
            held = read.now()
            if isinstance(read.namespace, Answers):
                self.questions.append((read.key, held, read.name))
                self._enter(held, read.name)
            else:
                self._note(read.namespace, read.key, read.name)
            if isinstance(held, Tensor) and not held.is_inference():
                self._ask(partial(getattr, held, "_version"), read.name)
            return
        if read.steps[0].key in ("_parameters", "_buffers"):
            self._note_trait(tree, read)
            return
        owner, key = owner_of(read, tree), read.steps[-1].key
        if key in _NAMES:
            self._ask(partial(_NAMES[key], owner), read)
            return
        if key == "training" and isinstance(owner, nn.Module):
            # The graph follows the mode of the module whose code read it, which has that of the
            # whole.
            self._ask(partial(is_in_mode, owner, tree, FOLLOWING), read)
            return
        container, _ = holder_of(read, tree)
        if key not in container and keeps_values(inspect.getattr_static(type(owner), key, None)):
            ask = partial(getattr, owner, key, MISSING)
            if (held := ask()) is ask() or is_same(held, ask()):
                self._ask(ask, read)
                self._enter(held, read)
            return
        self._note(container, key, read)
        if read.steps[-1].kind != "attribute" or key in container:
            return
        self._note_class(type(owner), key, read)
        if isinstance(owner, nn.Module):
            for table in (owner._parameters, owner._buffers, owner._modules):
                self._note(table, key, read)

    def _ask(self, question: Callable[[], Any], where: Any) -> None:
        self.questions.append((question, question(), where))

    def _note_trait(self, tree: nn.Module, read: Location) -> None:
        """Note a property of a tensor (shape, type, layout)."""
        table, name = holder_of(Location(read.root, read.steps[:-1]), tree)
        trait = read.steps[-1].key

        def of(tensor: Tensor) -> Any:
            return layout(tensor) if trait == "layout" else getattr(tensor, trait, MISSING)

        first = of(table[name])
        # A tensor that is gone, as weights for inference are, counts elsewhere.
        self._ask(lambda: first if table.get(name) is None else of(table[name]), read)

    def _note(self, namespace: Any, key: Any, where: Any) -> None:
        if not hasattr(namespace, "keys") or (id(namespace), key) in self.seen:
            return
        self.seen.add((id(namespace), key))
        held = namespace.get(key, MISSING)
        (self.absent if held is MISSING else self.present).add(namespace, key, held, where)
        self._enter(held, where)

    def _note_class(self, kind: type, name: str, where: Any) -> None:
        """Note a name in every class of the MRO, because any of them may define it."""
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
        if is_array(value) or isinstance(value, _BYTES):
            self.arrays.append((value, _bytes_of(value), where))
        elif isinstance(value, list | tuple | deque) and len(value) <= _MANY:
            if not isinstance(value, tuple):
                self.lists.append((value, list(value), where))
            for index, item in enumerate(value):
                self._enter(item, _then(where, index))
        elif isinstance(value, dict) and len(value) <= _MANY:
            self.dicts.append((value, list(value), where))
            for key in value:
                self._note(value, key, _then(where, key))
        elif isinstance(value, dict | list | set | deque):
            self.sized.append(value)
            self.sizes.append(len(value))
            self.sized_where.append(where)
        else:
            for key, held in inside(value).items():
                self._enter(held, _then(where, key))

    def changed(self, has_weights: bool = True, by_autocast: bool = True) -> str | None:
        """The name of the first changed value; None where nothing changed.

        ``has_weights``: must every parameter exist? ``by_autocast``: does a change of types by
        autocast count, or does the graph run under it?
        """
        changed = self.types.changed()
        if changed is not None and (by_autocast or changed != "autocast"):
            return f"the type of {changed}"
        found = self.changed_attribute(has_weights)
        return None if found is None else str(found)

    def changed_attribute(self, has_weights: bool = True) -> Any:
        """The first changed value other than number types; None without one."""
        return next(self._changed(has_weights), None)

    def _changed(self, has_weights: bool) -> Iterator[Any]:
        if self.was_changed is not None:
            yield self.was_changed
        if (where := self.present.changed()) is not None:
            yield where
        if any(map(contains, self.absent.namespaces, self.absent.names)):
            yield self.absent.changed()
        for question, answer, where in self.questions:
            try:
                now = question()
            except (LookupError, AttributeError):
                now = MISSING
            if now is not answer and not is_same(now, answer) and not _is_equal(now, answer):
                yield where
        if not all(map(is_, map(type, self.modules), self.kinds)):
            for module, kind in zip(self.modules, self.kinds, strict=True):
                if not runs_as(type(module), kind):  # type: ignore[arg-type]
                    yield f"the class of a {kind.__name__}"
        if has_weights:
            tables, names = self.tensors.namespaces, self.tensors.names
            tensors = [*map(dict.get, tables, names)]
            if not all(map(is_not, tensors, repeat(None))):
                yield next(self._lacking())
            for new in filter(computes_itself, set(map(type, tensors)) - self.tensor_kinds):
                yield f"the class of a tensor ({new.__name__})"
        for held, entries, where in self.lists:
            if len(held) != len(entries) or not all(map(is_same, held, entries)):
                yield where
        for held, keys, where in self.dicts:
            if [*map(id, held)] != [*map(id, keys)] and list(held) != keys:
                yield where
        if [*map(len, self.sized)] != self.sizes:
            sizes = zip(map(len, self.sized), self.sizes, self.sized_where, strict=True)
            yield next(where for size, expected, where in sizes if size != expected)
        for numbers, before, where in self.arrays:
            if _bytes_of(numbers) != before:
                yield where
        for one, name, other, alias, where in self.ties:
            if one.get(name) is not other.get(alias):
                yield where
        if self.present.is_exchanged:
            # From now on the new containers are watched.
            self._look()

    def _lacking(self) -> Iterator[Any]:
        held = self.tensors
        for table, name, where in zip(held.namespaces, held.names, held.where, strict=True):
            if table.get(name) is None:
                yield where


def _bytes_of(value: Any) -> bytes:
    # ``bytes`` takes an array of one integer for a length.
    return bytes(value) if isinstance(value, bytearray) else value.tobytes()


def _names_in(owner: Any) -> tuple[str, ...]:
    return tuple(vars(owner))


def _listed(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters and buffers of a module."""
    return tuple(
        name for of in (module.named_parameters(), module.named_buffers()) for name, _ in of
    )


#: The names that a read of all of them depends on.
_NAMES: Mapping[Any, Callable[[Any], tuple[str, ...]]] = {NAMESPACE: _names_in, LISTED: _listed}


def changed_now(state: RecordedState, has_weights: bool, by_autocast: bool) -> str | None:
    """``state.changed``. Compiled code evaluates it once, when it is compiled."""
    if torch.compiler.is_compiling():
        if function_modes():
            return _MODES
        compiled: str | None = _changed_once(state, has_weights, by_autocast)
        return compiled
    return state.changed(has_weights, by_autocast)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _changed_once(state: RecordedState, has_weights: bool, by_autocast: bool) -> str | None:
    return state.changed(has_weights, by_autocast)


def _are_alike(a: Any, b: Any) -> bool:
    """Are these the same object, or containers of one type with the same contents?"""
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
    """Are two results equal that are a new object each time (a device, a tuple)?"""
    is_plain = isinstance(answer, torch.device | torch.dtype | tuple)
    return is_plain and type(now) is type(answer) and bool(now == answer)
