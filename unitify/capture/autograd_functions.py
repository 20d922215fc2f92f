"""Finds the parts of a model's backward pass that a recording silently loses.

Export traces the forward of a ``torch.autograd.Function`` and drops its backward. It drops hooks on
gradients, ``retain_grad``, and the hooks on saved tensors that activation checkpointing uses. All
of these are noted while the model is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from unitify.capture.computed import Computed
from unitify.capture.source import Frame, frames_of_call

#: Methods of tensors by which code acts on gradients.
_ON_GRADIENTS = ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")
#: What to do about a class of torch's own, by the module that defines it; about a hook.
_ADVICE = {
    "torch.utils.checkpoint": "Pass use_reentrant=False to activation checkpointing",
    "torch.nn.modules._functions": "None is needed: the hook stays, and what it is put on with it",
}
_HOOK_ADVICE = "Put it on a parameter, or leave it: the module whose code does this stays Python"


@dataclass(frozen=True)
class PythonBackward:
    """A backward pass in Python: the stack of its first call, and what to do about it."""

    frames: tuple[Frame, ...]
    advice: str = "Register it with torch's custom_op and register_autograd"


@dataclass
class Noted:
    """What a recording met. ``functions``: autograd functions, and hooks on gradients.
    ``saved_hooks``: did hooks pack saved tensors? ``as_compiled``: did the model's code hear that
    it is being compiled? ``computed``: data that it read and that follows from sizes.
    """

    functions: dict[str, PythonBackward] = field(default_factory=dict)
    saved_hooks: bool = False
    as_compiled: bool = False
    computed: list[Computed] = field(default_factory=list)


@contextlib.contextmanager
def noted_backward() -> Iterator[Noted]:
    """Notes what happens inside, where gradients are recorded."""
    noted = Noted()
    function: Any = torch.autograd.Function
    hooks: Any = torch.autograd.graph.saved_tensors_hooks
    tensor: Any = torch.Tensor
    apply, enter = vars(function)["apply"], hooks.__enter__
    asked = {name: getattr(tensor, name) for name in _ON_GRADIENTS}
    own = vars(tensor).keys() & asked.keys()

    def noted_apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        inputs = pytree.tree_leaves((args, kwargs))
        # A registered operator keeps its backward, which torch wraps in such a class, and so does
        # an operation on graphs.
        is_operator = cls.__module__.startswith(("torch._library", "torch._higher_order_ops"))
        if (
            not is_operator
            and cls.__name__ not in noted.functions
            and torch.is_grad_enabled()
            and any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in inputs)
        ):
            advice = _ADVICE.get(cls.__module__, PythonBackward.advice)
            noted.functions[cls.__name__] = PythonBackward(frames_of_call(), advice)
        return apply.__get__(None, cls)(*args, **kwargs)

    def noted_enter(self: Any) -> Any:
        noted.saved_hooks = True
        return enter(self)

    def noting(name: str) -> Any:
        def noted_method(self: torch.Tensor, *args: Any) -> Any:
            lost = PythonBackward(frames_of_call(), _HOOK_ADVICE)
            noted.functions.setdefault(f"Tensor.{name}", lost)
            return asked[name](self, *args)

        return noted_method

    function.apply = classmethod(noted_apply)
    hooks.__enter__ = noted_enter
    for name in asked:
        setattr(tensor, name, noting(name))
    try:
        yield noted
    finally:
        function.apply, hooks.__enter__ = apply, enter
        for name, method in asked.items():
            if name in own:
                setattr(tensor, name, method)
            else:
                delattr(tensor, name)  # That of its base is there again.
