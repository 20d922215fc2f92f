"""Modules whose mode is not that of the whole model: a ``train`` of its own keeps some frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from unitify.capture.state import State, modes_kept, restored

#: Pairs of modes: of a whole, and of a module in it.
Modes = frozenset[tuple[bool, bool]]


def odd_modes(whole: nn.Module) -> Iterator[tuple[str, nn.Module, Modes]]:
    """Modules that do not follow the mode of ``whole``, as its own ``train`` keeps some frozen."""
    if all(type(module).train is nn.Module.train for module in whole.modules()):
        return
    found: dict[str, set[tuple[bool, bool]]] = {}
    state = State.of(whole, numbers=False)
    with restored(state), modes_kept(whole), contextlib.suppress(Exception):
        for mode in (True, False):
            whole.train(mode)
            for path, module in whole.named_modules():
                found.setdefault(path, set()).add((whole.training, module.training))
    for path, modes in found.items():
        if any(of_whole != own for of_whole, own in modes):
            yield path, whole.get_submodule(path), frozenset(modes)


def is_in_mode(module: nn.Module, whole: nn.Module, modes: Modes) -> bool:
    """Are the two in one of the pairs of ``modes``?"""
    return (whole.training, module.training) in modes
