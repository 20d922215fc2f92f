"""Grouped matmuls are recorded as they run, in any type: see ``runtime.grouped_mm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unitify.runtime.grouped_mm import GROUPED_MM

_OF_TORCH = (torch._grouped_mm, torch.ops.aten._grouped_mm, torch.ops.aten._grouped_mm.default)

_FIRST = {"input": "x", "self": "x"}


class Grouped(TorchFunctionMode):
    """A context in which code that calls torch's grouped matmul calls ours."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _OF_TORCH:
            return func(*args, **kwargs)
        # The function names its first operand "input", the operator "self".
        return _called(*args, **{_FIRST.get(name, name): given for name, given in kwargs.items()})


def _called(
    x: Tensor, mat2: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> Tensor:
    """Ours for rows in groups, each with a matrix; torch's for every other form."""
    is_plain = bias is None and out_dtype in (None, x.dtype)
    if offs is not None and is_plain and (x.dim(), mat2.dim()) == (2, 3):
        result: Tensor = GROUPED_MM(x, mat2, offs)
        return result
    return torch._grouped_mm(x, mat2, offs=offs, bias=bias, out_dtype=out_dtype)
