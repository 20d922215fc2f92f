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
    if _is_in_one_place(a, b):
        return True
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
    return x.resolve_neg().view(_BITS[x.element_size()]) if is_plain(x) else x


def is_plain(x: Tensor) -> bool:
    """Is it a tensor of torch's own class, whose numbers lie in memory?"""
    is_known = type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided
    return is_known and not x.is_meta


def _is_in_one_place(a: Tensor, b: Tensor) -> bool:
    """Do two tensors of one shape and type read the same memory in the same way?

    Copies on write do until one of them is written to.
    """
    if not (is_plain(a) and is_plain(b)):
        return False
    address = torch._C._data_address  # type: ignore[attr-defined]
    return address(a) == address(b) and a.stride() == b.stride() and a.is_neg() == b.is_neg()


def strided(tensor: Tensor) -> Tensor:
    """The numbers of a sparse, nested or complex tensor as a plain one of real numbers."""
    if tensor.is_nested:
        parts = [t.flatten() for t in tensor.unbind()]
        tensor = torch.cat(parts) if parts else torch.empty(0, dtype=tensor.dtype)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
