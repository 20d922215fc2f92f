"""Modules whose mode is not that of the whole model: a ``train`` of its own keeps some frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from torch import nn

from unitify.capture.state import State, modes_kept, restored

#: Pairs of modes: of a whole, and of a module in it.
Modes = frozenset[tuple[bool, bool]]
#: Those of a module that follows the whole.
FOLLOWING: Modes = frozenset({(True, True), (False, False)})


def odd_modes(whole: nn.Module) -> Mapping[nn.Module, Modes]:
    """Modules that do not follow the mode of ``whole``, as its own ``train`` keeps some frozen."""
    if all(type(module).train is nn.Module.train for module in whole.modules()):
        return {}
    found: dict[nn.Module, set[tuple[bool, bool]]] = {}
    state = State.of(whole, numbers=False)
    with restored(state), modes_kept(whole), contextlib.suppress(Exception):
        for mode in (True, False):
            whole.train(mode)
            for module in whole.modules():
                found.setdefault(module, set()).add((whole.training, module.training))
    return {m: frozenset(modes) for m, modes in found.items() if not modes <= FOLLOWING}


def is_in_mode(module: nn.Module, whole: nn.Module, modes: Modes) -> bool:
    """Are the two in one of the pairs of ``modes``?"""
    return (whole.training, module.training) in modes
