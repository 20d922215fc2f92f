"""Gradients as digests: two runs are compared, and neither keeps the gradients of its parameters.

A gradient is read once, when it arrives, and its memory is free for the next one. Two tensors that
differ have the same 128 bits of XXH3 with a probability of about 2^-128. Where digests differ,
only the gradients themselves tell by how much.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor

from unitify.capture.equality import is_plain, strided


@dataclass(frozen=True)
class Digest:
    """Equal for tensors of one type, shape and device that are bitwise the same."""

    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    bits: bytes


def digest(tensor: Tensor) -> Digest:
    """The digest of a tensor whose numbers lie in memory."""
    numbers = strided(tensor.detach()).resolve_neg().cpu().contiguous()
    held: Any = numbers.reshape(-1).view(torch.uint8).numpy()
    return Digest(tensor.dtype, tensor.shape, tensor.device, xxhash.xxh3_128_digest(held))


@contextlib.contextmanager
def gradients_as_digests(
    leaves: Mapping[str, Tensor], seen: Callable[[str, Tensor], Tensor] = lambda _name, own: own
) -> Iterator[Mapping[str, list[Digest]]]:
    """Inside, a gradient that arrives at a leaf leaves its digest, and ``.grad`` stays None.

    Yields the digests by the names of ``leaves``, in the order in which they arrive. A leaf
    that has a gradient already keeps it, and adds to it, as does one whose gradients are not plain.
    ``seen(name, gradient)`` gives the tensor to read.
    """
    found: dict[str, list[Digest]] = {}

    def hook(name: str) -> Callable[[Tensor], None]:
        def read(leaf: Tensor) -> None:
            gradient = leaf.grad
            if gradient is not None and is_plain(gradient) and not gradient.requires_grad:
                found.setdefault(name, []).append(digest(seen(name, gradient.detach())))
                leaf.grad = None

        return read

    handles = [
        leaf.register_post_accumulate_grad_hook(hook(name))
        for name, leaf in leaves.items()
        if leaf.requires_grad and leaf.is_leaf and leaf.grad is None
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
