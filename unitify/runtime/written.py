"""``unitify::written``: a tensor with a part of it overwritten, as a new value.

torch itself writes into a private copy, through the same views. So any view is supported, and the
gradients are bitwise those of the same write in place, in the same memory layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, library

_library = library.Library("unitify", "FRAGMENT")
_library.define(
    "written(Tensor base, Tensor value, str views='[]', SymInt[] sizes=[], Tensor[]? others=None)"
    " -> Tensor"
)

#: Constants of torch that a view may take as an argument.
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)


def view_text(operation: Any, arguments: Sequence[Any], index: int | None) -> list[Any] | None:
    """One view as text for ``written``; None where an argument cannot be text.

    ``arguments``: those after the tensor itself; ``index``: which of several results. A mapping
    ``{"size": k}`` or ``{"other": k}`` refers to the ``k``-th operand of ``sizes`` or ``others``.
    """
    try:
        return [str(operation), [_text(a) for a in arguments], index]
    except TypeError:
        return None


def _text(argument: Any) -> Any:
    if argument is None or isinstance(argument, bool | int | float | str | dict):
        return argument
    if isinstance(argument, list | tuple):
        return [_text(item) for item in argument]
    if isinstance(argument, _CONSTANTS):
        return {"torch": str(argument).removeprefix("torch.")}
    raise TypeError(argument)


@lru_cache(maxsize=4096)
def _parsed(views: str) -> list[tuple[Any, list[Any], int | None]]:
    found = []
    for name, arguments, index in json.loads(views):
        operation: Any = torch.ops
        for part in name.split("."):
            operation = getattr(operation, part)
        found.append((operation, arguments, index))
    return found


def _value(argument: Any, sizes: Sequence[Any], others: Sequence[Tensor]) -> Any:
    if isinstance(argument, list):
        return [_value(item, sizes, others) for item in argument]
    if not isinstance(argument, dict):
        return argument
    ((kind, which),) = argument.items()
    if kind == "torch":
        constant = getattr(torch, which)
        assert isinstance(constant, _CONSTANTS)
        return constant
    return sizes[which] if kind == "size" else others[which]


def _written(
    base: Tensor,
    value: Tensor,
    views: str = "[]",
    sizes: Sequence[Any] = (),
    others: Sequence[Tensor] | None = None,
) -> Tensor:
    result = base.clone()
    part = result
    for operation, arguments, index in _parsed(views):
        shown = operation(part, *(_value(a, sizes, others or ()) for a in arguments))
        if index is not None:
            # Autograd forbids a write into one of several views, but allows one into this alias.
            one = shown[index]
            shown = part.as_strided(one.size(), one.stride(), one.storage_offset())
        part = shown
    part.copy_(value)
    return result


_library.impl("written", _written, "CompositeImplicitAutograd")
