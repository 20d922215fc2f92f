"""Surroundings: what a model's code reads beside the attributes of its modules.

These are what its names lead to (``capture/named.py``); variables of the environment and of the
context; torch's switches (autocast, the default dtype); and properties of tensors
(``requires_grad``). A recording holds their values at the time.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import types
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext

from unitify.capture.named import (
    Read,
    asked,
    asks_identity,
    class_reads,
    functions_read,
    globals_read,
    is_closed,
    is_open,
)
from unitify.capture.reachable import Location
from unitify.capture.tensor_questions import (
    IS_PARAMETER,
    LISTED,
    LISTS,
    Asked,
    Innermost,
    Questions,
    attributes_noted,
)

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
        found[getattr(switch, "__code__", switch)] = (asked(f"torch.{name}()", switch),)
    for name in _SWITCHES_BY_DEVICE.split():
        switch = getattr(torch, name)
        found[switch] = tuple(
            asked(f"torch.{name}({device!r})", functools.partial(switch, device))
            for device in ("cpu", "cuda")
        )
    return found


_ENVIRON = type(os.environ).__getitem__.__code__  # type: ignore[attr-defined]
_DEFAULT_DEVICE = torch.get_default_device.__code__


@dataclass
class Surroundings(Questions):
    """``reads``: what was read, with the modules that were innermost then. ``reads_mode``: may code
    that ran read whether a module is in train or eval mode? It names the flag.
    """

    reads: dict[Read, set[nn.Module | None]] = field(default_factory=dict)
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
    named = [(Location(path), module) for path, module in model.named_modules()]
    modules = {id(module): location for location, module in named}
    located = {
        location.then("attribute", table).then("item", name): tensor
        for location, module in named
        for table in ("_parameters", "_buffers")
        for name, tensor in vars(module).get(table, {}).items()
    }
    # A tied tensor is at its first place.
    locations = {id(tensor): location for location, tensor in reversed(located.items())}
    ran: dict[types.CodeType, _Ran] = {}
    met: set[types.CodeType] = set()
    switches = _switches()

    def note(reads: tuple[Read, ...]) -> None:
        for read in reads:
            found.reads.setdefault(read, set()).add(innermost())

    def is_question(frame: types.FrameType) -> bool:
        return frame.f_code is IS_PARAMETER and id(frame.f_locals["instance"]) in given

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
            elif code in LISTS and is_open(frame.f_back):
                if (owner := modules.get(id(frame.f_locals["self"]))) is not None:
                    listed = owner.then("attribute", LISTED)
                    found.of_tensors.setdefault(listed, set()).add(innermost())
            elif code is _ENVIRON and is_open(_outside_library(frame)):
                name = frame.f_locals["key"]
                note((asked(f"os.environ[{name!r}]", lambda: os.environ[name]),))
            elif code is Tensor.__hash__.__code__ and is_open(frame.f_back):
                found.asks_identity = True
            elif code is torch.initial_seed.__code__ and is_open(frame.f_back):
                found.unheld[innermost()] = "it reads the seed"
            elif is_question(frame) and is_open(frame.f_back):
                found.unheld[innermost()] = "it asks whether an input is a parameter"
        elif event == "return":
            found.asks_identity = found.asks_identity or (_is_layer(frame) and asks_identity(frame))
        elif event == "c_call" and is_open(frame):
            found.asks_identity |= called is id
            if getattr(called, "__qualname__", "") == "Generator.initial_seed":
                found.unheld[innermost()] = "it reads the seed"
            if called in switches:
                note(switches[called])
            variable = getattr(called, "__self__", None)
            if isinstance(variable, ContextVar) and called.__name__ == "get":
                note((asked(f"the context variable {variable.name}", variable.get),))

    before: Any = sys.getprofile()
    leaves = pytree.tree_leaves(inputs)
    given = {id(leaf) for leaf in leaves}
    with (
        Asked(locations, innermost, found, given),
        attributes_noted(found, innermost, leaves, located),
    ):
        sys.setprofile(notice)
        try:
            yield found
        finally:
            _profile_again(before)
    if found.makes:
        (read,) = switches[_DEFAULT_DEVICE]
        found.reads.setdefault(read, set()).update(found.makes)
    for code, own in ran.items():
        of_classes = (class_reads(kind, code.co_names) for kind in own.kinds)
        for read in itertools.chain(globals_read(code, own.known), *of_classes):
            found.reads.setdefault(read, set()).update(own.within)
    for read, code in functions_read({code: own.closures for code, own in ran.items()}):
        found.reads.setdefault(read, set()).update(ran[code].within)


def _profile_again(profiler: Any) -> None:
    """Set ``profiler``, a function, or one of C code, such as cProfile's, which sets itself."""
    is_function = profiler is None or callable(profiler)
    sys.setprofile(profiler if is_function else None)
    if not is_function:
        profiler.enable()


def _names_mode(frame: types.FrameType) -> bool:
    """Does code of a model or of a library name ``training``, as an attribute or in a text?"""
    is_own = str(frame.f_globals.get("__name__", "")).startswith("unitify.")
    code = frame.f_code
    return not is_own and ("training" in code.co_names or "training" in code.co_consts)


def _is_layer(frame: types.FrameType) -> bool:
    """Does it run code of a model, or of one of torch's own layers?"""
    name = str(frame.f_globals.get("__name__", ""))
    return is_open(frame) or name.startswith(("torch.nn.functional", "torch.nn.modules.activation"))


def _outside_library(frame: types.FrameType | None) -> types.FrameType | None:
    """The frame that called into Python's own library."""
    while frame is not None:
        if frame.f_globals.get("__name__") not in ("os", "collections.abc", "_collections_abc"):
            return frame
        frame = frame.f_back
    return None


def function_modes() -> tuple[Any, ...]:
    """Active modes of users that may change what torch's functions compute.

    Not a default device: where a model makes tensors on it, it is a read of its own.
    """
    if not torch._C._len_torch_function_stack():
        return ()
    return tuple(
        mode
        for mode in _get_current_function_mode_stack()
        if not isinstance(mode, DeviceContext) and not is_closed(type(mode).__module__)
    )
