"""Two objects that calls made, one after the other: do they mean the same?"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.equality import same
from unitify.capture.reachable import is_same


def is_same_value(a: Any, b: Any) -> bool:
    """Are two structures of numbers, tensors and functions equal? Other objects never are."""
    (left, spec), (right, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    if spec != other:
        return False
    return all(
        same(x.detach(), y.detach())
        if isinstance(x, Tensor) and isinstance(y, Tensor)
        else is_same(x, y) or _is_same_function(x, y)
        for x, y in zip(left, right, strict=True)
    ) and not any(isinstance(x, nn.Parameter | nn.Module) for x in left)


def _is_same_function(a: Any, b: Any) -> bool:
    """Do two functions have the same code, defaults and closure values?"""
    if not (isinstance(a, FunctionType) and isinstance(b, FunctionType)):
        return False
    around = [
        (f.__defaults__, f.__kwdefaults__, [cell.cell_contents for cell in f.__closure__ or ()])
        for f in (a, b)
    ]
    return a.__code__ is b.__code__ and is_same_value(*around)
