"""Copies that take no memory until one side is written to (torch's copy-on-write storages)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unitify.capture.equality import is_plain, same


def shared_until_written(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy of ``storage``: in its memory, until either of the two is written to."""
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return copied_on_write(whole).untyped_storage()


def copied_on_write(tensor: Tensor) -> Tensor:
    """A copy of ``tensor``: in its memory, until either of the two is written to."""
    try:
        return tensor._lazy_clone()
    except RuntimeError:
        # The memory is not torch's own: an array's, or a file's. Or it is not strided.
        return tensor.clone()


def take_own_memory(copied: nn.Module, model: nn.Module) -> None:
    """End the sharing of the parameters of a copy and its model, which keeps its memory.

    No other copy of ``model`` may still share it (``release``).
    """
    for parameter in (*copied.parameters(), *model.parameters()):
        if is_plain(parameter):
            # To ask for an address to write to makes the copy; the last one needs none.
            parameter.data_ptr()


def release(copied: nn.Module, model: nn.Module) -> None:
    """Give back the memory of the parameters of a copy of ``model`` that nobody uses any more.

    Modules of graphs are cycles, which Python would free late.
    """
    kept = {id(parameter) for parameter in model.parameters()}
    for parameter in copied.parameters():
        if id(parameter) not in kept and is_plain(parameter):
            parameter.data = parameter.data.new_empty(0)


@contextlib.contextmanager
def gradients_shared(leaves: Mapping[str, Tensor], earlier: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a gradient that arrives at a leaf moves into the memory of the same one of before.

    ``earlier``: gradients by the names of ``leaves``. So two whole sets never exist at once.
    """

    def hook(own: Tensor) -> Any:
        def moved(leaf: Tensor) -> None:
            gradient = leaf.grad
            if gradient is not None and not gradient.requires_grad and same(gradient, own):
                leaf.grad = copied_on_write(own)

        return moved

    handles = [
        leaf.register_post_accumulate_grad_hook(hook(own))
        for name, leaf in leaves.items()
        if leaf.requires_grad and type(own := earlier.get(name)) is Tensor
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
