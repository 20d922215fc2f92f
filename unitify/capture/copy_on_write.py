"""Copies that take no memory until one side is written to (torch's copy-on-write storages)."""

from __future__ import annotations

import torch
from torch import nn

from unitify.capture.equality import is_plain


def shared_until_written(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """A copy of ``storage``: in its memory, until either of the two is written to."""
    whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    try:
        copied = whole._lazy_clone()
    except RuntimeError:
        # The memory is not torch's own: an array's, or a file's.
        copied = whole.clone()
    return copied.untyped_storage()


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
