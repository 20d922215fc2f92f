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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from unitify.capture.named import Read, asked, class_reads, functions_read, globals_read, is_closed
from unitify.capture.reachable import Location

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
                note((asked(f"os.environ[{name!r}]", lambda: os.environ[name]),))
        elif event == "c_call" and is_open(frame):
            if called in switches:
                note(switches[called])
            variable = getattr(called, "__self__", None)
            if isinstance(variable, ContextVar) and called.__name__ == "get":
                note((asked(f"the context variable {variable.name}", variable.get),))

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
    return bool(name) and not is_closed(name)


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
