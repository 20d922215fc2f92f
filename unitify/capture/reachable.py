"""Finds every Python container that a model, or a call of it, can reach.

It starts from the modules of a model (and from the inputs of a call). It follows attributes, dicts,
lists, sets and plain objects, and the functions that ``forward`` calls, with their closures,
default arguments and the globals that they name. A ``Cell`` is one such container, which can be
read and written entry by entry. Nothing is called, and nothing of torch or of the interpreter is
entered.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import weakref
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

#: Stands for a missing entry.
MISSING = object()
#: Types whose values are compared by equality, not by identity.
PLAIN = (bool, int, float, complex, str, bytes, type(None))
#: Types that are never entered, because they are no state of a model.
_CLOSED = (type, types.ModuleType, types.BuiltinFunctionType, Tensor)
_CLOSED_PACKAGES = (
    "torch",
    "unitify",
    "logging",
    "threading",
    "_thread",
    "concurrent",
    "typing",
    "functools",
)
#: The elements of a larger container (a vocabulary, a registry) are not followed.
_MANY = 4096


class Step(NamedTuple):
    """One step to a value: an attribute, or an entry of a container."""

    kind: str
    key: Any

    def __str__(self) -> str:
        return f".{self.key}" if self.kind == "attribute" else f"[{self.key!r}]"


class Location(NamedTuple):
    """The way to a container: a root (a module's path, "the inputs", a function), and steps.

    A tuple, because a walk over a model makes tens of thousands.
    """

    root: str
    steps: tuple[Step, ...] = ()

    def then(self, kind: str, key: Any) -> Location:
        """One step further."""
        return Location(self.root, (*self.steps, Step(kind, key)))

    def within(self, path: str) -> Location | None:
        """The same location, seen from the submodule at ``path``; None where it is outside."""
        if self.root == path:
            return Location("", self.steps)
        if self.root.startswith(f"{path}."):
            return Location(self.root.removeprefix(f"{path}."), self.steps)
        return None

    def leads_to(self, other: Location) -> bool:
        """Is ``other`` this entry, or inside it?"""
        return self.root == other.root and other.steps[: len(self.steps)] == self.steps

    def names_tensor(self, target: str) -> bool:
        """Is this the entry of a module's tables with the dotted name ``target``?"""
        path, _, name = target.rpartition(".")
        keys = [step.key for step in self.steps]
        return self.root == path and keys in ([name], ["_buffers", name], ["_parameters", name])

    def __str__(self) -> str:
        return (self.root + "".join(map(str, self.steps))).removeprefix(".")


@dataclass(frozen=True)
class Cell:
    """One container: its entries by key.

    ``step``: what kind of step leads to an entry. ``owner``: the object whose namespace it is.
    """

    location: Location
    container: Any
    step: str
    owner: Any = None

    @property
    def namespace(self) -> Any:
        """The dict that holds the entries, if it is one."""
        return self.container[0] if self.step == "global" else self.container

    def entries(self) -> dict[Any, Any]:
        """A copy of what the container holds now."""
        held = self.container
        if isinstance(held, types.CellType):
            try:
                return {"value": held.cell_contents}
            except ValueError:
                return {}
        if self.step == "global":
            return {name: held[0][name] for name in held[1] if name in held[0]}
        if self.step == "class":
            home = held.__module__
            return {n: v for n, v in vars(held).items() if n[:2] != "__" and _is_state(v, home)}
        if type(held) is dict:
            return held.copy()
        kind = _kind_of(type(held))  # type: ignore[arg-type]
        if kind in (list, deque, tuple):
            return dict(enumerate(kind.__iter__(held)))
        if kind is set:
            return {id(item): item for item in set.__iter__(held)}
        return {key: kind.__getitem__(held, key) for key in kind.__iter__(held)}

    def put(self, entries: dict[Any, Any]) -> None:
        """Make the container hold these entries and nothing else, in this order."""
        held = self.container
        if isinstance(held, types.CellType):
            held.cell_contents = entries["value"]
        elif self.step == "global":
            for name in held[1]:
                if name in entries:
                    held[0][name] = entries[name]
                else:
                    held[0].pop(name, None)
        elif self.step == "class":
            for name in self.entries().keys() - entries.keys():
                delattr(held, name)
            for name, value in entries.items():
                setattr(held, name, value)
        elif (kind := _kind_of(type(held))) in (list, deque):  # type: ignore[arg-type]
            kind.clear(held)
            kind.extend(held, entries.values())
        elif kind is set:
            set.clear(held)
            set.update(held, entries.values())
        else:
            # In place and in order: an object's namespace cannot be exchanged for another.
            for key in list(kind.__iter__(held)):
                kind.__delitem__(held, key)
            for key, value in entries.items():
                kind.__setitem__(held, key, value)

    def set(self, key: Any, value: Any) -> None:
        """Make one entry ``value``."""
        self.put({**self.entries(), key: value})


@functools.cache
def _kind_of(kind: type) -> Any:
    """The type whose methods read and write a container of the type ``kind``.

    A subclass may make other values of what it holds (a registry that gives instances of its
    classes), or refuse to be written to.
    """
    kinds = (OrderedDict, dict, list, deque, tuple, set, Slots)
    return next(base for base in kinds if issubclass(kind, base))


class Slots(MutableMapping[str, Any]):
    """The attributes that an object keeps in ``__slots__``, as a namespace."""

    def __init__(self, of: Any, names: tuple[str, ...]) -> None:
        self.of, self.names = of, names

    def __getitem__(self, name: str) -> Any:
        if name not in self.names or not hasattr(self.of, name):
            raise KeyError(name)
        return getattr(self.of, name)

    def __setitem__(self, name: str, value: Any) -> None:
        # A frozen dataclass would also refuse to restore an entry.
        object.__setattr__(self.of, name, value)

    def __delitem__(self, name: str) -> None:
        object.__delattr__(self.of, name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.names if hasattr(self.of, name))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    """Names of the slots of a class, as its instances have them."""
    found: list[str] = []
    for base in kind.__mro__:
        own = vars(base).get("__slots__", ())
        for name in (own,) if isinstance(own, str) else tuple(own):
            is_private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if is_private else name)
    return tuple(n for n in dict.fromkeys(found) if n not in ("__dict__", "__weakref__"))


def namespaces(value: Any) -> list[MutableMapping[str, Any]]:
    """Where an object keeps its attributes: in its dict, in slots, or in both."""
    held = getattr(value, "__dict__", None)
    found: list[MutableMapping[str, Any]] = [held] if isinstance(held, dict) else []
    kind: Any = type(value)
    names = _slots(kind)
    return [*found, Slots(value, names)] if names else found


def is_same(a: Any, b: Any) -> bool:
    """Is an entry the same as before: the same object, or a plain value that computes the same?"""
    if a is b or type(a) is not type(b) or not isinstance(a, PLAIN):
        return a is b
    if isinstance(a, complex):
        return is_same(a.real, b.real) and is_same(a.imag, b.imag)
    if isinstance(a, float) and not a:
        return not b and math.copysign(1.0, a) == math.copysign(1.0, b)
    return bool(a == b or (a != a and b != b))


def set_on(tensor: Tensor) -> dict[str, Any]:
    """What Python code has set on a tensor, under public names."""
    return {name: held for name, held in vars(tensor).items() if not name.startswith("_")}


def is_array(value: Any) -> bool:
    """Is it an array of NumPy?"""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def cells(model: nn.Module, inputs: Any = ()) -> Iterator[Cell]:
    """Every container that ``model`` and the structure ``inputs`` can reach, each once."""
    seen: set[int] = set()
    #: Holds on to what was seen, so that no other object takes its identity.
    alive: list[Cell] = []
    pending: deque[tuple[Any, Location]] = deque([(inputs, Location("the inputs"))])
    pending.extend((module, Location(name)) for name, module in model.named_modules())
    kinds: dict[type, None] = dict.fromkeys(type(m) for m in model.modules())
    functions = dict.fromkeys(f for kind in kinds for f in _functions(kind))
    pending.extend((f, Location(f"{f.__qualname__}()")) for f in functions)
    #: First come, first served: a module is met under its own path.
    queued = {id(value) for value, _ in pending}

    def follow(values: Iterable[tuple[Any, Any]], location: Location, step: str) -> None:
        for key, value in values:
            # Identity first: to ask some objects for their class is slow.
            if id(value) not in queued and not isinstance(value, PLAIN):
                queued.add(id(value))
                pending.append((value, location.then(step, key)))

    while pending:
        value, location = pending.popleft()
        if isinstance(value, PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        for cell in _cells_of(value, location):
            if cell.container is not value and id(cell.container) in seen:
                continue
            seen.add(id(cell.container))
            alive.append(cell)
            yield cell
            entries = cell.entries()
            if len(entries) <= _MANY:
                follow(entries.items(), cell.location, cell.step)


def _cells_of(value: Any, location: Location) -> Iterator[Cell]:
    if isinstance(value, nn.Module):
        for namespace in namespaces(value):
            yield Cell(location, namespace, "attribute", value)
        if not _is_closed(type(value)):
            yield from _class_cells(type(value))
    elif isinstance(value, dict):
        yield Cell(location, value, "item")
        if vars_of := getattr(value, "__dict__", None):
            yield Cell(location, vars_of, "attribute", value)
    elif isinstance(value, list | deque | set | tuple | types.CellType):
        yield Cell(location, value, "item")
    elif isinstance(value, types.FunctionType):
        yield from _function_cells(value, location)
    elif isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
        hooks = {**(value._backward_hooks or {}), **(value._post_accumulate_grad_hooks or {})}
        if hooks:
            yield Cell(location, hooks, "item")
    elif held := inside(value):
        yield Cell(location, held, "item")
    elif not isinstance(value, _CLOSED) and not _is_closed(type(value)):
        for namespace in namespaces(value):
            yield Cell(location, namespace, "attribute", value)


def inside(value: Any) -> dict[str, Any]:
    """What a bound method, a partial function, a weak reference or a wrapper of a container leads
    to, by name.
    """
    if isinstance(value, types.MethodType):
        return {"of": value.__self__, "function": value.__func__}
    if isinstance(value, functools.partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, UserDict | UserList | ChainMap):
        return {"maps": value.maps} if isinstance(value, ChainMap) else {"data": value.data}
    return {"of": value()} if isinstance(value, weakref.ref) else {}


def _function_cells(function: types.FunctionType, location: Location) -> Iterator[Cell]:
    if _is_closed_name(function.__module__):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        yield Cell(location.then("attribute", name), cell, "item")
    for held in (function.__defaults__, function.__kwdefaults__):
        if held:
            given = dict(enumerate(held)) if isinstance(held, tuple) else held
            yield Cell(location.then("attribute", "defaults"), given, "item")
    known = function.__globals__
    home = function.__module__
    named = {n: known[n] for n in _names(function.__code__) if n in known}
    names = tuple(n for n, held in named.items() if _is_state(held, home))
    if names:
        yield Cell(location, (known, names), "global")
    for kind in named.values():
        if isinstance(kind, type) and _is_own(kind, home):
            yield from _class_cells(kind)


def _class_cells(kind: type) -> Iterator[Cell]:
    for base in kind.__mro__:
        if not _is_closed(base) and base is not object:
            yield Cell(Location(base.__qualname__), base, "class")


def _is_state(value: Any, home: str) -> bool:
    """Can code of the module ``home`` keep state in a global or in an attribute of a class?

    In plain values and containers, and in objects of its own package; another library's object (a
    logger, a client) is not ours to restore.
    """
    kind = type(value)
    if kind in (*PLAIN, Tensor, types.SimpleNamespace) or (
        kind.__module__ in ("builtins", "collections")
        and issubclass(kind, (dict, list, set, tuple, deque))
    ):
        return True
    return _is_own(kind, home) and not issubclass(kind, (*_CLOSED, types.FunctionType, nn.Module))


def _is_own(kind: type, home: str) -> bool:
    """Is it a class of the package of the module ``home``?"""
    return kind.__module__.partition(".")[0] == (home or "").partition(".")[0]


@functools.cache
def _functions(kind: type) -> tuple[types.FunctionType, ...]:
    """The functions that a call of a module of this class may run, as far as they are named."""
    found: dict[types.FunctionType, None] = {}
    pending = [f for f in (inspect.getattr_static(kind, "forward", None),) if f is not None]
    while pending:
        function = pending.pop()
        if not isinstance(function, types.FunctionType) or function in found:
            continue
        if _is_closed_name(function.__module__):
            continue
        found[function] = None
        for name in _names(function.__code__):
            own = inspect.getattr_static(kind, name, None)
            own = own.__func__ if isinstance(own, staticmethod | classmethod) else own
            pending.append(own.fget if isinstance(own, property) else own)
            pending.append(function.__globals__.get(name))
        pending.append(getattr(function, "__wrapped__", None))
    return tuple(found)


def _names(code: types.CodeType) -> tuple[str, ...]:
    """Every name in a function's code, and in the functions inside of it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *(n for c in inner for n in _names(c))]))


def _is_closed(kind: type) -> bool:
    return kind is object or _is_closed_name(kind.__module__)


def _is_closed_name(module: str | None) -> bool:
    return (module or "").split(".")[0] in (*_CLOSED_PACKAGES, "builtins", "collections")
