"""What a model's code asks tensors about themselves, beside their numbers, sizes and types.

A recording can watch some of it (``requires_grad`` of a parameter, the memory order of inputs). It
cannot hold the history of a tensor, how its memory is shared, or what Python code has set on it.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from unitify.capture.layouts import LAYS, strides_of
from unitify.capture.named import is_open
from unitify.capture.reachable import Location, set_on

#: Facts about the history and the memory of a tensor.
_FACTS = """is_leaf grad_fn _grad_fn retains_grad output_nr _version _base _is_view _backward_hooks
    _post_accumulate_grad_hooks storage_offset is_shared is_pinned is_set_to is_conj is_neg
    is_inference"""


def _facts() -> dict[Any, str]:
    """The names of facts, by the functions that tell them: getters, methods, torch's own."""
    found: dict[Any, str] = {}
    for name in _FACTS.split():
        for owner in (torch._C.TensorBase, Tensor, torch):
            held = vars(owner).get(name)
            if isinstance(held, types.GetSetDescriptorType):
                found[held.__get__] = name
            elif held is not None:
                found[held] = name
    return found


_FACT_OF = _facts()
#: Properties of a tensor, by the function that torch calls for each.
_TRAITS: dict[Any, str] = {
    vars(torch._C.TensorBase)["requires_grad"].__get__: "requires_grad",
    vars(torch._C.TensorBase)["grad"].__get__: "grad",
    vars(torch._C.TensorBase)["grad"].__set__: "grad",
    Tensor.is_contiguous: "layout",
    Tensor.stride: "layout",
}
#: What decides whether a tensor requires a gradient.
_DECIDES = (Tensor.requires_grad_, vars(torch._C.TensorBase)["requires_grad"].__set__)
#: Code of torch that does so for all parameters of a module, or clears their gradients.
_OF_MODULES = (nn.Module.requires_grad_.__code__, nn.Module.zero_grad.__code__)
#: Code of torch that tells whether a tensor is a parameter.
IS_PARAMETER = type(nn.Parameter).__instancecheck__.__code__
#: The names of all parameters and buffers of a module, and code of torch that lists them.
LISTED = "parameters()"
LISTS = frozenset(
    getattr(nn.Module, name).__code__
    for name in ("parameters", "named_parameters", "buffers", "named_buffers", "state_dict")
)

Innermost = Callable[[], "nn.Module | None"]


@dataclass
class Questions:
    """- ``of_tensors``: what the model's parameters and buffers were asked, by location, with the
      modules that asked
    - ``layouts``: the modules that asked any other tensor how its elements lie
    - ``unheld``: those that asked what no recording holds, and what
    - ``makes``: those that made a tensor on the default device
    - ``attributes``: names that tensors were asked for and that no tensor has by itself
    - ``asks_identity``: was it asked whether two tensors are one?
    - ``laid``: what laid tensors anew, in which module, and the strides that it met
    """

    of_tensors: dict[Location, set[nn.Module | None]] = field(default_factory=dict)
    layouts: set[nn.Module | None] = field(default_factory=set)
    unheld: dict[nn.Module | None, str] = field(default_factory=dict)
    makes: set[nn.Module | None] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    asks_identity: bool = False
    laid: list[tuple[nn.Module | None, Any, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Asks:
    """``attributes``: names that code asks tensors for and that no tensor has by itself;
    ``identity``: does code ask whether two tensors are one?
    """

    attributes: frozenset[str] = frozenset()
    identity: bool = False

    def joined(self, found: Questions) -> Asks:
        """These, and what was found in another run."""
        return Asks(self.attributes | found.attributes, self.identity or found.asks_identity)


class Asked(TorchFunctionMode):
    """Inside, notes in ``found`` what code asks. ``locations``: of the model's tensors;
    ``inputs``: those of the call, by identity.
    """

    def __init__(
        self,
        locations: Mapping[int, Location],
        innermost: Innermost,
        found: Questions,
        inputs: Collection[int],
    ) -> None:
        super().__init__()
        self.locations, self.innermost, self.found = locations, innermost, found
        self.inputs = inputs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = (*args, *(kwargs or {}).values())
        if func in LAYS:
            self._note_layout(func, given)
        trait, fact = _TRAITS.get(func), _FACT_OF.get(func)
        frame = _caller(func) if trait or fact or func in _DECIDES else None
        if is_open(frame) or (frame is not None and frame.f_code in _OF_MODULES):
            self._note(trait, fact, given[0])
        is_made = func in _device_constructors() and (kwargs or {}).get("device") is None
        if is_made and is_open(_caller(func)):
            self.found.makes.add(self.innermost())
        return func(*args, **(kwargs or {}))

    def _note_layout(self, func: Any, given: tuple[Any, ...]) -> None:
        module, location = self.innermost(), self.locations.get(id(given[0]))
        self.found.laid.append((module, func, strides_of(given)))
        if location is not None:
            of = location.then("attribute", "layout")
            self.found.of_tensors.setdefault(of, set()).add(module)

    def _note(self, trait: str | None, fact: str | None, tensor: Any) -> None:
        """Note a question to ``tensor``; neither a trait nor a fact: that it takes a gradient."""
        module, location = self.innermost(), self.locations.get(id(tensor))
        if fact is not None:
            self.found.unheld[module] = f"it asks a tensor for {fact}"
        elif trait == "grad":
            if location is not None:
                self.found.unheld[module] = f"it uses the gradient of {location}"
        elif trait is None:
            which = "an input" if id(tensor) in self.inputs else location
            if which is not None:
                self.found.unheld[module] = f"it decides whether {which} requires a gradient"
        elif location is not None:
            of = location.then("attribute", trait)
            self.found.of_tensors.setdefault(of, set()).add(module)
        elif trait == "layout":
            self.found.layouts.add(module)


def _caller(func: Any) -> types.FrameType | None:
    """The frame that calls ``func`` of torch, which may be Python code itself."""
    frame: types.FrameType | None = sys._getframe(2)
    code = getattr(func, "__code__", None)
    while code is not None and frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame if code is None or frame is None else frame.f_back


@contextlib.contextmanager
def attributes_noted(
    found: Questions,
    innermost: Innermost,
    inputs: Collection[Any],
    located: Mapping[Location, Tensor],
) -> Iterator[None]:
    """Inside, note in ``found`` the attributes that code asks tensors for.

    Python looks for a method ``__getattr__`` where a tensor lacks a name. ``inputs`` and the
    model's own tensors, ``located``, lack for now what Python code has set on them, and the method
    answers for them.
    """
    given = (x for x in (*inputs, *located.values()) if isinstance(x, Tensor))
    tensors = {id(tensor): tensor for tensor in given}
    held = {own: set_on(tensor) for own, tensor in tensors.items()}
    locations = {id(tensor): location for location, tensor in located.items()}

    def missing(self: Tensor, name: str) -> Any:
        own = held.get(id(self), {})
        if is_open(sys._getframe(1)) and not name.startswith("__"):
            if (location := locations.get(id(self))) is not None:
                of = location.then("attribute", name)
                found.of_tensors.setdefault(of, set()).add(innermost())
            elif name not in own:
                found.attributes.add(name)
            else:
                found.unheld[innermost()] = f"it asks an input for its attribute {name}"
        if name in own:
            return own[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    before = vars(Tensor).get("__getattr__")
    for own, tensor in tensors.items():
        for name in held[own]:
            del vars(tensor)[name]
    Tensor.__getattr__ = missing  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if before is None:
            del Tensor.__getattr__  # type: ignore[attr-defined]
        else:
            Tensor.__getattr__ = before  # type: ignore[attr-defined]
        for own, tensor in tensors.items():
            vars(tensor).update(held[own])


def computes_itself(kind: type) -> bool:
    """Does a class of tensors have a ``__torch_function__`` of its own?"""
    own = getattr(kind, "__torch_function__", None)
    if own is None or own is torch._C._disabled_torch_function_impl:
        return False
    return getattr(own, "__func__", own) is not vars(Tensor)["__torch_function__"].__func__
