"""Surroundings: what a model's code reads beside the attributes of its modules.

These are globals, and what they lead to (a flag of a configuration); variables of the environment
and of the context; torch's switches (autocast, the default dtype); and properties of tensors
(``requires_grad``). A recording holds their values at the time. A ``Read`` says where a value is,
so that each call can check whether it is the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import os
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from unitify.capture.reachable import MISSING, PLAIN, Location, namespaces


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
    """One value that was read: entry ``key`` of ``namespace``. ``name``: for messages."""

    name: str
    namespace: Any = field(compare=False)
    key: Any = field(compare=False)

    def now(self) -> Any:
        """The present value; ``MISSING`` for none."""
        return self.namespace.get(self.key, MISSING)


def _asked(name: str, question: Callable[[], Any]) -> Read:
    return Read(name, Answers(), question)


#: Switches of torch that take no argument, and those that take a kind of device.
_SWITCHES = """is_grad_enabled is_inference_mode_enabled is_anomaly_enabled
    are_deterministic_algorithms_enabled is_deterministic_algorithms_warn_only_enabled
    get_deterministic_debug_mode get_default_dtype get_default_device get_num_threads
    get_float32_matmul_precision is_autocast_cache_enabled is_autocast_cpu_enabled
    get_autocast_gpu_dtype get_autocast_cpu_dtype"""
_SWITCHES_BY_DEVICE = "is_autocast_enabled get_autocast_dtype"


def _switches() -> dict[Any, tuple[Read, ...]]:
    """The reads of a switch, by its built-in function or by the code of its Python one."""
    found: dict[Any, tuple[Read, ...]] = {}
    for name in _SWITCHES.split():
        switch = getattr(torch, name)
        found[getattr(switch, "__code__", switch)] = (_asked(f"torch.{name}()", switch),)
    for name in _SWITCHES_BY_DEVICE.split():
        switch = getattr(torch, name)
        found[switch] = tuple(
            _asked(f"torch.{name}({device!r})", functools.partial(switch, device))
            for device in ("cpu", "cuda")
        )
    return found


#: Properties of a tensor, by the function that torch calls for each.
_TRAITS: dict[Any, str] = {
    vars(torch._C.TensorBase)["requires_grad"].__get__: "requires_grad",
    vars(torch._C.TensorBase)["grad"].__get__: "grad",
    vars(torch._C.TensorBase)["grad"].__set__: "grad",
    Tensor.is_contiguous: "layout",
    Tensor.stride: "layout",
}
#: What decides whether a tensor requires a gradient.
_ASKS = (Tensor.requires_grad_, vars(torch._C.TensorBase)["requires_grad"].__set__)
#: Code of torch that clears gradients where a model's code calls it.
_CLEARS = nn.Module.zero_grad.__code__
#: torch, this package and Python's own libraries have no switches but those named above.
_CLOSED = frozenset(sys.stdlib_module_names) - {"__main__"} | {"torch", "unitify", "numpy"}
#: Those of their types that hold what their users say.
_PLAIN_OBJECTS = (threading.local, types.SimpleNamespace, types.FunctionType, argparse.Namespace)
#: Folders of packages that were installed.
_INSTALLED = ("/site-packages/", "/dist-packages/")
_ENVIRON = type(os.environ).__getitem__.__code__  # type: ignore[attr-defined]

Innermost = Callable[[], "nn.Module | None"]


def layout(tensor: Tensor) -> tuple[bool, ...]:
    """The memory order of a tensor's elements."""
    if tensor.layout != torch.strided:
        return ()
    is_image = tensor.dim() == 4
    return (
        tensor.is_contiguous(),
        is_image and tensor.is_contiguous(memory_format=torch.channels_last),
    )


@dataclass
class Surroundings:
    """``reads``: what was read, with the modules that were innermost then. ``of_tensors``: what the
    model's parameters and buffers were asked, by location; ``grads``: whose gradients.
    ``layouts``: those that asked any other tensor how its elements lie. ``asking``: those that
    decided whether an input requires a gradient. ``reads_mode``: may code that ran read whether a
    module is in train or eval mode? It names the flag.
    """

    reads: dict[Read, set[nn.Module | None]] = field(default_factory=dict)
    of_tensors: dict[Location, set[nn.Module | None]] = field(default_factory=dict)
    grads: dict[Location, set[nn.Module | None]] = field(default_factory=dict)
    layouts: set[nn.Module | None] = field(default_factory=set)
    asking: set[nn.Module | None] = field(default_factory=set)
    reads_mode: bool = False


@dataclass
class _Ran:
    """Code that ran: with which globals, within which modules, on which values of its closure, and
    as methods of which classes.
    """

    known: dict[str, Any]
    within: set[nn.Module | None] = field(default_factory=set)
    closures: set[tuple[int, ...]] = field(default_factory=set)
    kinds: set[type] = field(default_factory=set)


@contextlib.contextmanager
def noted(model: nn.Module, innermost: Innermost, inputs: Any = ()) -> Iterator[Surroundings]:
    """Note what the code inside reads. ``innermost``: the module that is running; ``inputs``: of
    the call.
    """
    found = Surroundings()
    locations: dict[int, Location] = {}
    for path, module in model.named_modules():
        for table in ("_parameters", "_buffers"):
            where = Location(path).then("attribute", table)
            for name, tensor in vars(module).get(table, {}).items():
                locations.setdefault(id(tensor), where.then("item", name))
    ran: dict[types.CodeType, _Ran] = {}
    met: set[types.CodeType] = set()
    switches = _switches()

    def note(reads: tuple[Read, ...]) -> None:
        for read in reads:
            found.reads.setdefault(read, set()).add(innermost())

    def notice(frame: types.FrameType, event: str, called: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in met:
                met.add(code)
                found.reads_mode |= _names_mode(frame)
            if is_open(frame):
                own = ran.setdefault(code, _Ran(frame.f_globals))
                own.within.add(innermost())
                if code.co_argcount:
                    first = frame.f_locals.get(code.co_varnames[0])
                    own.kinds.add(first if isinstance(first, type) else type(first))
                if code.co_freevars:
                    own.closures.add(tuple(id(frame.f_locals.get(n)) for n in code.co_freevars))
            elif code in switches and is_open(frame.f_back):
                note(switches[code])
            elif code is _ENVIRON and is_open(_outside_library(frame)):
                name = frame.f_locals["key"]
                note((_asked(f"os.environ[{name!r}]", lambda: os.environ[name]),))
        elif event == "c_call" and is_open(frame):
            if called in switches:
                note(switches[called])
            variable = getattr(called, "__self__", None)
            if isinstance(variable, ContextVar) and called.__name__ == "get":
                note((_asked(f"the context variable {variable.name}", variable.get),))

    before: Any = sys.getprofile()
    given = {id(leaf) for leaf in pytree.tree_leaves(inputs)}
    with _Traits(locations, innermost, found, given):
        sys.setprofile(notice)
        try:
            yield found
        finally:
            _profile_again(before)
    for code, own in ran.items():
        of_classes = (class_reads(kind, code.co_names) for kind in own.kinds)
        for read in itertools.chain(_globals_read(code, own.known), *of_classes):
            found.reads.setdefault(read, set()).update(own.within)
    for read, code in _functions_read(ran):
        found.reads.setdefault(read, set()).update(ran[code].within)


def _profile_again(profiler: Any) -> None:
    """Set ``profiler``, a function, or one of C code, such as cProfile's, which sets itself."""
    is_function = profiler is None or callable(profiler)
    sys.setprofile(profiler if is_function else None)
    if not is_function:
        profiler.enable()


class _Traits(TorchFunctionMode):
    """Notes what the model's code asks tensors about themselves."""

    def __init__(
        self,
        locations: Mapping[int, Location],
        innermost: Innermost,
        found: Surroundings,
        inputs: Collection[int],
    ) -> None:
        super().__init__()
        self.locations, self.innermost, self.found = locations, innermost, found
        self.inputs = inputs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ASKS and id(args[0]) in self.inputs:
            self.found.asking.add(self.innermost())
        trait = _TRAITS.get(func)
        frame = sys._getframe(1)
        if trait is not None and (is_open(frame) or frame.f_code is _CLEARS):
            location = self.locations.get(id(args[0]))
            if location is None:
                readers = self.found.layouts if trait == "layout" else set()
            elif trait == "grad":
                readers = self.found.grads.setdefault(location, set())
            else:
                of = location.then("attribute", trait)
                readers = self.found.of_tensors.setdefault(of, set())
            readers.add(self.innermost())
        return func(*args, **(kwargs or {}))


def is_open(frame: types.FrameType | None) -> bool:
    """Does the frame run code that is neither torch's nor Python's own?"""
    name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return bool(name) and name.partition(".")[0] not in _CLOSED


def _names_mode(frame: types.FrameType) -> bool:
    """Does code of a model or of a library name ``training``, as an attribute or in a text?"""
    is_own = str(frame.f_globals.get("__name__", "")).startswith("unitify.")
    code = frame.f_code
    return not is_own and ("training" in code.co_names or "training" in code.co_consts)


def _outside_library(frame: types.FrameType | None) -> types.FrameType | None:
    """The frame that called into Python's own library."""
    while frame is not None:
        if frame.f_globals.get("__name__") not in ("os", "collections.abc", "_collections_abc"):
            return frame
        frame = frame.f_back
    return None


def _globals_read(code: types.CodeType, known: dict[str, Any]) -> Iterator[Read]:
    """What a function's code may read through the globals that it names."""
    return _named(code.co_names, str(known.get("__name__")), known, _is_installed(known))


def _named(names: Collection[str], path: str, known: Any, is_installed: bool) -> Iterator[Read]:
    """The entries of ``known``, a namespace, and of what it leads to, that have these names."""
    pending: deque[tuple[str, Any]] = deque([(path, known)])
    seen = {id(known)}
    while pending:
        path, namespace = pending.popleft()
        for name in names:
            if name.startswith("__") or name not in namespace:
                continue
            value, where = namespace[name], f"{path}.{name}"
            if _is_watched(value, is_installed):
                yield _read(where, namespace, name)
            if id(value) not in seen and _is_entered(value):
                seen.add(id(value))
                pending.extend((where, held) for held in _held_by(value))


def class_reads(kind: type, names: Collection[str] | None = None) -> Iterator[Read]:
    """The attributes of a class, of these ``names`` or all, that its instances' code may read."""
    for base in kind.__mro__:
        if not _is_closed(base.__module__):
            held, where = vars(base), f"{base.__module__}.{base.__qualname__}"
            is_installed = _is_installed(vars(sys.modules.get(base.__module__, sys)))
            for name in held if names is None else names:
                if name[:2] != "__" and name in held and _is_watched(held[name], is_installed):
                    yield Read(f"{where}.{name}", held, name)


def _functions_read(ran: Mapping[types.CodeType, _Ran]) -> Iterator[tuple[Read, types.CodeType]]:
    """What the functions of this code hold in closures and default arguments.

    A frame does not show whose it is.
    """
    for function in gc.get_referrers(*ran) if ran else ():
        if not isinstance(function, types.FunctionType) or function.__code__ not in ran:
            continue
        code, held = function.__code__, function.__closure__ or ()
        is_installed = _is_installed(function.__globals__)
        name = f"{function.__module__}.{function.__qualname__}"
        for ask in () if is_installed else _defaults_of(function):
            yield _asked(f"{name}: a default argument", ask), code
        values = tuple(Read("", Answers(), _contents(cell)).now() for cell in held)
        if tuple(map(id, values)) not in ran[code].closures:
            continue
        for variable, cell, value in zip(code.co_freevars, held, values, strict=True):
            where = f"{name}: {variable}"
            if _is_watched(value, is_installed):
                yield _asked(where, _contents(cell)), code
            for namespace in _held_by(value) if _is_entered(value) else ():
                for read in _named(code.co_names, where, namespace, is_installed):
                    yield read, code


def _defaults_of(function: types.FunctionType) -> Iterator[Callable[[], Any]]:
    """A question for each default argument of a function."""

    def ask(name: str, key: Any) -> Any:
        return getattr(function, name)[key]

    for key in range(len(function.__defaults__ or ())):
        yield functools.partial(ask, "__defaults__", key)
    for name in function.__kwdefaults__ or ():
        yield functools.partial(ask, "__kwdefaults__", name)


def _contents(cell: types.CellType) -> Callable[[], Any]:
    def contents() -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return MISSING

    return contents


def _read(where: str, namespace: Any, name: str) -> Read:
    if isinstance(namespace, _OfThread):
        return _asked(where, lambda: getattr(namespace.of, name))
    return Read(where, namespace, name)


class _OfThread(dict[str, Any]):
    """What a thread-local object holds for this thread."""

    of: Any


def _held_by(value: Any) -> Iterator[Any]:
    if isinstance(value, type):
        yield from (vars(base) for base in value.__mro__ if not _is_closed(base.__module__))
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
    if is_installed or isinstance(value, types.ModuleType):
        return type(value) in (*PLAIN, torch.dtype)
    return not isinstance(value, types.FunctionType) or not _is_closed(value.__module__)


def _is_installed(known: Mapping[str, Any]) -> bool:
    """Is it the namespace of a package that was installed, not of the user's own code?"""
    path = str(known.get("__file__")).replace(os.sep, "/")
    return any(folder in path for folder in _INSTALLED)


def _is_entered(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        return not _is_closed(value.__name__)
    kind = value if isinstance(value, type) else type(value)
    return not _is_closed(kind.__module__) or kind in _PLAIN_OBJECTS


def _is_closed(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _CLOSED
