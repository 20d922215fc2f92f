"""Tied parameters stay tied when a state dict is loaded with ``assign=True``.

Each name is then given a tensor of its own. A graph reads one tensor for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unitify.capture.recorded_graph import parameter_aliases
from unitify.diagnostics import KeysDiffer, UnitifyError


def ties_of(tree: nn.Module) -> dict[str, str]:
    """Every further name of a tied parameter → the first name."""
    return {name: first for name, first in parameter_aliases(tree).items() if name != first}


def check_ties(ties: Mapping[str, str], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Does ``state_dict`` hold the same numbers under all names of a tensor?

    Raises ``UnitifyError`` (U603).
    """
    for name, first in ties.items():
        own, other = state_dict.get(prefix + name), state_dict.get(prefix + first)
        if own is None or other is None or own is other:
            continue
        if own.shape != other.shape or not (own.is_meta or torch.equal(own, other)):
            problem = f"{name} and {first} are one parameter, and two tensors are given"
            raise UnitifyError(KeysDiffer(problem=problem))


def tie(tree: nn.Module, ties: Mapping[str, str], before: Mapping[str, nn.Parameter]) -> None:
    """Put one parameter under all names of ``ties``: the one that is not as ``before``.

    ``before``: by first name.
    """
    for first in dict.fromkeys(ties.values()):
        names = [first, *(name for name, of in ties.items() if of == first)]
        held = [tree.get_parameter(name) for name in names]
        new = next((p for p in held if p is not before[first]), before[first])
        for name in names:
            path, _, own = name.rpartition(".")
            tree.get_submodule(path)._parameters[own] = new


def tied_again(module: Any, _keys: Any) -> None:
    """After a state dict was loaded: names of one parameter hold one."""
    tie(module._tree, *module.__dict__.pop("_tied"))
