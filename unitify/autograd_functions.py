"""Does a model call a ``torch.autograd.Function`` of its own?

Export traces through the forward of such a function and loses its backward, silently. So the
functions that run while a model is recorded are noted, where a gradient would pass them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def noted_functions() -> Iterator[list[str]]:
    """Names of the Python-defined autograd functions called inside where gradients are recorded."""
    names: dict[str, None] = {}
    found: list[str] = []
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        inputs = pytree.tree_leaves((args, kwargs))
        # An operator of torch.library keeps its backward, which torch wraps in such a class.
        is_operator = cls.__module__.startswith("torch._library")
        if (
            not is_operator
            and torch.is_grad_enabled()
            and any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in inputs)
        ):
            names[cls.__name__] = None
        return original.__get__(None, cls)(*args, **kwargs)

    function: Any = torch.autograd.Function
    function.apply = classmethod(apply)
    try:
        yield found
    finally:
        function.apply = original
        found.extend(names)
