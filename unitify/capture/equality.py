"""Bitwise equality of tensors of every layout."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bytes of an element → a type of integers for its bits.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equal in values, shape and type: zeros have their signs; a NaN equals a NaN."""
    if a.layout != b.layout or a.is_nested != b.is_nested or a.dtype != b.dtype:
        return False
    a, b = strided(a), strided(b)
    if a.shape != b.shape or a.device != b.device:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    ours, theirs = _bits(a), _bits(b)
    if torch.equal(ours, theirs):
        return True
    nans = torch.isnan(a)
    return (
        bool(nans.any())
        and torch.equal(nans, torch.isnan(b))
        and torch.equal(ours[~nans], theirs[~nans])
    )


def _bits(x: Tensor) -> Tensor:
    """The bits of real numbers as integers. A tensor of a class of its own keeps its numbers."""
    x = x.detach()
    is_plain = type(x) in (Tensor, torch.nn.Parameter)
    return x.resolve_neg().view(_BITS[x.element_size()]) if is_plain else x


def strided(tensor: Tensor) -> Tensor:
    """The numbers of a sparse, nested or complex tensor as a plain one of real numbers."""
    if tensor.is_nested:
        parts = [t.flatten() for t in tensor.unbind()]
        tensor = torch.cat(parts) if parts else torch.empty(0, dtype=tensor.dtype)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
