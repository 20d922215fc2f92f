"""Keeps tied parameters tied when a state dict is loaded with ``assign=True``.

torch then assigns one tensor to each name. A graph reads one tensor for all of them.
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
    """Check that ``state_dict`` has the same numbers under all names of a tied parameter.

    Raises ``UnitifyError`` (U603) where it has not.
    """
    for name, first in ties.items():
        own, other = state_dict.get(prefix + name), state_dict.get(prefix + first)
        if own is None or other is None or own is other:
            continue
        if own.shape != other.shape or not (own.is_meta or torch.equal(own, other)):
            problem = f"{name} and {first} are one parameter, but have two different tensors"
            raise UnitifyError(KeysDiffer(problem=problem))


def tie(tree: nn.Module, ties: Mapping[str, str], before: Mapping[str, nn.Parameter]) -> None:
    """Put one parameter under all names of ``ties``: the one that differs from ``before``.

    ``before``: the parameters before the load, by first name.
    """
    for first in dict.fromkeys(ties.values()):
        names = [first, *(name for name, of in ties.items() if of == first)]
        held = [tree.get_parameter(name) for name in names]
        new = next((p for p in held if p is not before[first]), before[first])
        for name in names:
            path, _, own = name.rpartition(".")
            tree.get_submodule(path)._parameters[own] = new


def tied_again(module: Any, _keys: Any) -> None:
    """Tie parameters again, after a state dict was loaded."""
    tie(module._tree, *module.__dict__.pop("_tied"))
