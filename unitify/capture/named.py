"""What code may read by the names in it: globals and what they lead to, closures, default
arguments, attributes of classes.

A ``Read`` says where a value is, so that each call can check whether it is the same. Nothing is
called.
"""

from __future__ import annotations

import argparse
import dis
import functools
import gc
import os
import sys
import threading
import types
from collections import ChainMap, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from unitify.capture.reachable import MISSING, PLAIN, namespaces

#: torch, this package and Python's own libraries keep no state of models under a name.
_CLOSED = frozenset(sys.stdlib_module_names) - {"__main__"} | {"torch", "unitify", "numpy"}
#: Those of their types that hold what their users say.
_PLAIN_OBJECTS = (threading.local, types.SimpleNamespace, types.FunctionType, argparse.Namespace)
#: What torch offers under a name.
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
#: Folders of packages that were installed.
_INSTALLED = ("/site-packages/", "/dist-packages/")


class Answers:
    """A namespace of functions, whose entries are their present results."""

    def get(self, question: Callable[[], Any], default: Any = None) -> Any:
        """The result, or ``default`` for none."""
        try:
            return question()
        except (LookupError, AttributeError):
            return default


@dataclass(frozen=True)
class Read:
    """One value that was read: entry ``key`` of ``namespace``. ``name``: for messages; ``of``: the
    identity of what holds it, because functions and objects share names.
    """

    name: str
    namespace: Any = field(compare=False)
    key: Any = field(compare=False)
    of: int = 0

    def now(self) -> Any:
        """The present value; ``MISSING`` for none."""
        return self.namespace.get(self.key, MISSING)


def asked(name: str, question: Callable[[], Any], of: int = 0) -> Read:
    """A read of what ``question`` gives."""
    return Read(name, Answers(), question, of)


def globals_read(code: types.CodeType, known: dict[str, Any]) -> Iterator[Read]:
    """What a function's code may read through the globals that it names."""
    loaded = [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"]
    first = _entries(str(known.get("__name__")), known, dict.fromkeys(loaded))
    return _leading_on(first, code.co_names, _is_installed(known))


def _entries(path: str, namespace: Any, names: Collection[str]) -> Iterator[Read]:
    for name in names:
        if not name.startswith("__") and name in namespace:
            yield _read(f"{path}.{name}", namespace, name)


def _leading_on(
    first: Iterable[Read], names: Collection[str], is_installed: bool
) -> Iterator[Read]:
    """These reads, and what their values lead to by ``names``, as far as it is watched."""
    pending = deque(first)
    seen: set[int] = set()
    while pending:
        read = pending.popleft()
        value = read.now()
        if _is_watched(value, is_installed):
            yield read
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, types.ModuleType) and _package(value.__name__) == "torch":
            # Some exchange functions of torch for faster ones.
            for entry in _entries(read.name, vars(value), names):
                if isinstance(entry.now(), types.ModuleType):
                    pending.append(entry)
                elif isinstance(entry.now(), _FUNCTIONS):
                    yield entry
        elif _is_entered(value):
            for namespace in _held_by(value):
                pending.extend(_entries(read.name, namespace, names))


def class_reads(kind: type, names: Collection[str] | None = None) -> Iterator[Read]:
    """The attributes of a class, of these ``names`` or all, that its instances' code may read."""
    for base in kind.__mro__:
        if not is_closed(base.__module__):
            held, where = vars(base), f"{base.__module__}.{base.__qualname__}"
            is_installed = _is_installed(vars(sys.modules.get(base.__module__, sys)))
            for name in held if names is None else names:
                if name[:2] != "__" and name in held and _is_watched(held[name], is_installed):
                    yield Read(f"{where}.{name}", held, name, id(base))


def functions_read(
    ran: Mapping[types.CodeType, Collection[tuple[int, ...]]],
) -> Iterator[tuple[Read, types.CodeType]]:
    """What the functions of this code hold in closures and default arguments.

    A frame does not show whose it is. ``ran``: the identities of the values of the closures with
    which the code ran.
    """
    for function in gc.get_referrers(*ran) if ran else ():
        if not isinstance(function, types.FunctionType) or function.__code__ not in ran:
            continue
        code, held = function.__code__, function.__closure__ or ()
        is_installed = _is_installed(function.__globals__)
        name = f"{function.__module__}.{function.__qualname__}"
        for read in () if is_installed else _defaults_of(function, name):
            yield read, code
        values = tuple(Read("", Answers(), _contents(cell)).now() for cell in held)
        if tuple(map(id, values)) not in ran[code]:
            continue
        first = [
            asked(f"{name}: {variable}", _contents(cell), id(cell))
            for variable, cell in zip(code.co_freevars, held, strict=True)
        ]
        for read in _leading_on(first, code.co_names, is_installed):
            yield read, code


def _defaults_of(function: types.FunctionType, name: str) -> Iterator[Read]:
    def default(table: str, key: Any) -> Any:
        return getattr(function, table)[key]

    places: list[tuple[str, Any]] = [
        ("__kwdefaults__", key) for key in function.__kwdefaults__ or ()
    ]
    places += (("__defaults__", key) for key in range(len(function.__defaults__ or ())))
    for place in places:
        of_argument = f"{name}: default argument {place[1]}"
        yield asked(of_argument, functools.partial(default, *place), id(function))


def _contents(cell: types.CellType) -> Callable[[], Any]:
    def contents() -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return MISSING

    return contents


def _read(where: str, namespace: Any, name: str) -> Read:
    if isinstance(namespace, _OfThread):
        return asked(where, lambda: getattr(namespace.of, name), id(namespace.of))
    return Read(where, namespace, name, id(namespace))


class _OfThread(dict[str, Any]):
    """What a thread-local object holds for this thread."""

    of: Any


def _held_by(value: Any) -> Iterator[Any]:
    if isinstance(value, type):
        yield from (vars(base) for base in value.__mro__ if not is_closed(base.__module__))
    elif isinstance(value, threading.local):
        held = _OfThread(vars(value))
        held.of = value
        yield held
    else:
        yield from namespaces(value)


def _is_watched(value: Any, is_installed: bool) -> bool:
    """Is it a flag or a number, or anything that the user's own code names, modules apart?

    What else installed packages name does not count: registries, and records of warnings.
    """
    is_plain = type(value) in (*PLAIN, torch.dtype)
    return is_plain or not (is_installed or isinstance(value, types.ModuleType))


def _is_installed(known: Mapping[str, Any]) -> bool:
    """Is it the namespace of a package that was installed, not of the user's own code?"""
    path = str(known.get("__file__")).replace(os.sep, "/")
    return any(folder in path for folder in _INSTALLED)


def _is_entered(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return not is_closed(value.__name__)
    kind = value if isinstance(value, type) else type(value)
    return not is_closed(kind.__module__) or kind in _PLAIN_OBJECTS


def is_closed(module: str | None) -> bool:
    """Is it a module of torch, of this package, or of Python's own library?"""
    return _package(module) in _CLOSED


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def is_open(frame: types.FrameType | None) -> bool:
    """Does the frame run code that is neither torch's nor Python's own?"""
    name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return bool(name) and not is_closed(name)


def asks_identity(frame: types.FrameType) -> bool:
    """Did the code of a frame, which returns, ask whether a tensor and another value are one?"""
    compared = _compared(frame.f_code)
    known = ChainMap(frame.f_locals, frame.f_globals) if compared else {}
    return any(all(isinstance(known.get(n), torch.Tensor) for n in names) for names in compared)


@functools.cache
def _compared(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """The names of the operands of each ``is`` in code, of one operand at least."""
    found, loaded = [], list[tuple[str, ...]]()
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name == "IS_OP":
            found.append(sum(loaded[-2:], ())[-2:])
        elif name.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL")):
            own = instruction.argval
            loaded.append(own if isinstance(own, tuple) else (own,))
        elif name not in ("SWAP", "COPY"):
            loaded = [("",)] if name == "LOAD_CONST" else []
    return tuple(names for names in found if names)
