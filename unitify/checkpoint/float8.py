"""Decodes weights that a checkpoint stores as codes of eight bits beside their scales."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from unitify.checkpoint.state_dict import StateDict

#: The endings that turn a weight's name into that of its scale, which multiplies its codes.
_SCALES = ("_scale", "_scale_inv")
#: Rows and columns of a block with one scale, as in DeepSeek-V3.
_BLOCK = 128


def dequantized(given: StateDict, dtype: torch.dtype) -> tuple[dict[str, object], tuple[str, ...]]:
    """``given`` with weights in ``dtype`` instead of codes and scales, and the names of these.

    Codes without a scale, or with one of an unknown shape, stay.
    """
    made = dict(given)
    names = []
    for name, codes in given.items():
        if not (isinstance(codes, Tensor) and codes.is_floating_point() and codes.itemsize == 1):
            continue
        for scale_name, scale in _scales(given, name) if codes.dim() else ():
            factors = _spread(scale.float(), codes.shape)
            if factors is not None:
                made[name] = (codes.float() * factors).to(dtype)
                del made[scale_name]
                names.append(name)
                break
    return made, tuple(names)


def _scales(given: StateDict, name: str) -> Iterator[tuple[str, Tensor]]:
    for ending in _SCALES:
        scale = given.get(name + ending)
        if isinstance(scale, Tensor) and not scale.is_complex():
            yield name + ending, scale


def _spread(scale: Tensor, shape: torch.Size) -> Tensor | None:
    """The scale of each element, from one for all, one a row or one a block; None otherwise."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.numel() == shape[0] and scale.shape in ((shape[0],), (shape[0], 1)):
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    if len(shape) == 2 and scale.shape == tuple(math.ceil(size / _BLOCK) for size in shape):
        rows = scale.repeat_interleave(_BLOCK, 0)[: shape[0]]
        return rows.repeat_interleave(_BLOCK, 1)[:, : shape[1]]
    return None
