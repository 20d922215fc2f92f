"""Weights stored as codes of eight bits beside their scales, as numbers again."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from unitify.checkpoint.state_dict import StateDict

#: What follows a weight's name in that of its scale, the multiplier of its codes.
_SCALES = ("_scale", "_scale_inv")
#: Rows and columns that share a scale, where scales are given by blocks.
_BLOCK = 128


def dequantized(given: StateDict, dtype: torch.dtype) -> tuple[dict[str, object], tuple[str, ...]]:
    """``given`` with codes times scales, rounded to ``dtype``, in place of both; and their names.

    Codes without a scale, or with one of a shape that nothing explains, stay.
    """
    made = dict(given)
    names = []
    for name, codes in given.items():
        if not (isinstance(codes, Tensor) and codes.is_floating_point() and codes.itemsize == 1):
            continue
        for scale_name, scale in _scales(given, name):
            factors = _spread(scale.float(), codes.shape)
            if factors is not None:
                made[name] = (codes.float() * factors).to(dtype)
                del made[scale_name]
                names.append(name)
                break
    return made, tuple(names)


def _scales(given: StateDict, name: str) -> Iterator[tuple[str, Tensor]]:
    for ending in _SCALES:
        if isinstance(scale := given.get(name + ending), Tensor):
            yield name + ending, scale


def _spread(scale: Tensor, shape: torch.Size) -> Tensor | None:
    """One scale for all, one a row, or one a block; None for anything else."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == shape[0] and scale.shape in ((shape[0],), (shape[0], 1)):
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    if len(shape) == 2 and scale.shape == tuple(math.ceil(size / _BLOCK) for size in shape):
        rows = scale.repeat_interleave(_BLOCK, 0)[: shape[0]]
        return rows.repeat_interleave(_BLOCK, 1)[:, : shape[1]]
    return None
