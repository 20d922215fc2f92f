"""Tensors in blocks: pieces of one length along one dimension, as a new last dimension.

Takes tensors, a length and a dimension; knows no format.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def in_blocks(x: Tensor, size: int, axis: int) -> Tensor:
    """[.., blocks, ``size``]: ``x`` with ``axis`` moved last and split. Zeros fill the last block.

    A single number is a block, too.
    """
    moved = x.movedim(axis, -1) if x.dim() else x.reshape(1)
    missing = -moved.shape[-1] % size
    filled = pad(moved, (0, missing)) if missing else moved
    blocks: Tensor = filled.unflatten(-1, (filled.shape[-1] // size, size))
    return blocks
