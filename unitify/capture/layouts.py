"""How the elements of tensors lie in memory, and the functions of torch that depend on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: What makes a view or a copy, by the layout of its operand.
LAYS = frozenset(
    (
        Tensor.contiguous, Tensor.reshape, torch.reshape, Tensor.reshape_as, Tensor.flatten,
        torch.flatten, Tensor.ravel, torch.ravel, torch.functional.einsum,
        torch.functional.tensordot, torch.nn.functional.multi_head_attention_forward,
    )
)  # fmt: skip


def strides_of(operands: Any) -> tuple[tuple[int, ...], ...]:
    """The strides of each tensor, along dimensions with more than one element."""
    tensors = (x for x in pytree.tree_leaves(operands) if isinstance(x, Tensor))
    return tuple(
        tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1)
        for x in tensors
        if x.layout == torch.strided and not x.is_nested
    )


def layout(tensor: Tensor) -> tuple[bool, ...]:
    """The memory order of a tensor's elements."""
    if tensor.layout != torch.strided:
        return ()
    is_image = tensor.dim() == 4
    return (
        tensor.is_contiguous(),
        is_image and tensor.is_contiguous(memory_format=torch.channels_last),
    )
