"""A tensor times a number, in the same memory layout.

Kernels round differently for different layouts: in vectorized and strided loops, and on aligned
and misaligned rows of a matmul. So the result of a rescale has the sizes, the strides and
the alignment of its operand. Expanded dimensions stay expanded, and overlapping windows overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Bytes to which allocators align the start of a tensor; views may start anywhere.
_ALIGNMENT = {"cpu": 64}
_ALIGNMENT_ELSEWHERE = 256


def scaled(x: Tensor, factor: float) -> Tensor:
    """``x · factor`` in new memory, with the strides and the alignment of ``x``."""
    if x.layout is not torch.strided:
        return torch.mul(x, factor)
    offset = _misalignment(x)
    if offset == 0 and torch._prims_common.is_non_overlapping_and_dense_or_false(x):
        result = torch.mul(x, factor)
        # ``mul`` may change the strides of dimensions of size one, which matter to a matmul.
        return result if result.stride() == x.stride() else _restrided(result, x)
    return _laid_out(x, factor, offset)


def _misalignment(x: Tensor) -> int:
    """The number of elements between an aligned address and the first element of ``x``."""
    offset = x.storage_offset()
    if not isinstance(offset, int):
        return 0  # Recording with free sizes has no addresses.
    return offset % max(1, _ALIGNMENT.get(x.device.type, _ALIGNMENT_ELSEWHERE) // x.element_size())


def _laid_out(x: Tensor, factor: float, offset: int) -> Tensor:
    """The general case: new storage, of which only the part that ``x`` covers is written."""
    compact = x
    for dimension, (size, stride) in enumerate(zip(x.size(), x.stride(), strict=True)):
        if stride == 0 and size > 1:
            compact = compact.narrow(dimension, 0, 1)
    overlaps = _overlaps(compact)
    if overlaps:
        # Windows share elements: scale the memory under them, once.
        compact = compact.as_strided((_extent(compact),), (1,), compact.storage_offset())
    storage = torch.empty(_extent(compact) + offset, dtype=x.dtype, device=x.device)
    result = storage.as_strided(compact.size(), compact.stride(), offset)
    torch.mul(compact, factor, out=result)
    return result.as_strided(x.size(), x.stride(), offset) if overlaps else result.expand(x.size())


def _restrided(result: Tensor, like: Tensor) -> Tensor:
    return result.as_strided(like.size(), like.stride(), result.storage_offset())


def _extent(x: Tensor) -> int:
    """The number of elements in memory from the first to the last one of ``x``."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * s for size, s in zip(x.size(), x.stride(), strict=True))


def _overlaps(x: Tensor) -> bool:
    """Do two indices refer to one element (apart from expanded dimensions)?"""
    extent = 1
    for stride, size in sorted(zip(x.stride(), x.size(), strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent = stride * (size - 1) + extent
    return False
