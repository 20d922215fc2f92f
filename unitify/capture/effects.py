"""Effects: what a call leaves behind beside its result. Found while recording, repeated by a call.

A module may keep a tensor of its call on itself, or add one to a dict that it was given. A
recording returns such tensors behind its result. A call of the graph puts them where they belong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.reachable import (
    MISSING,
    PLAIN,
    Cell,
    Location,
    inside,
    is_same,
    namespaces,
)
from unitify.capture.state import Change, State

#: The root of locations in the inputs of a call, which are its arguments by name.
INPUTS = "the inputs"


@dataclass(frozen=True)
class Effect:
    """A location, and the structure of what each call leaves there."""

    location: Location
    spec: pytree.TreeSpec


class StateLost(Exception):
    """A call changes something that no recording can return; the message names it."""


def effects_of(
    state: State, paths: set[str], touched: Iterable[Location]
) -> tuple[list[Effect], list[Any]]:
    """The effects since ``state``, which was taken before a recorded call, and their values.

    ``touched``: the entries that calls of the model change. Other changes, except to inputs, are
    the recording's own.

    Raises ``StateLost`` for a change that is neither a tensor nor a size, or at a location that no
    call could find again.
    """
    found: list[Effect] = []
    values: list[Any] = []
    for change in state.changes():
        is_seen = change.location.root == INPUTS or any(
            location.leads_to(change.location) for location in touched
        )
        if not is_seen or _is_unchanged(change):
            continue
        if not _is_known(change, paths):
            raise StateLost(f"its call changes {change}, which no graph keeps")
        found.append(Effect(change.location, pytree.tree_structure(change.after)))
        values.append(change.after)
    return found, values


def _is_known(change: Change, paths: set[str]) -> bool:
    leaves = pytree.tree_leaves(change.after)
    plain = [leaf for leaf in leaves if not isinstance(leaf, Tensor | torch.SymInt)]
    if change.after is MISSING or not all(isinstance(leaf, PLAIN) for leaf in plain):
        return False
    if change.location.root == INPUTS:
        return True
    # A number that the recording did not compute may differ at the next call.
    before = pytree.tree_leaves(change.before)
    are_old = all(any(is_same(leaf, old) for old in before) for leaf in plain)
    return change.location.root in paths and are_old


def _is_unchanged(change: Change) -> bool:
    """Is the entry another object with equal contents?"""
    if MISSING in (change.before, change.after):
        return False
    (a, spec), (b, other) = pytree.tree_flatten(change.before), pytree.tree_flatten(change.after)
    return spec == other and all(map(is_same, a, b))


def leave(
    effects: Sequence[Effect], values: Sequence[Any], tree: nn.Module, inputs: Mapping[str, Any]
) -> None:
    """Put the flat ``values`` of a call where ``effects`` say, in ``tree`` or its ``inputs``."""
    rest: Iterator[Any] = iter(values)
    for effect in effects:
        leaves = [next(rest) for _ in range(effect.spec.num_leaves)]
        holder, key = holder_of(effect.location, tree, inputs)
        value = pytree.tree_unflatten(leaves, effect.spec)
        if isinstance(holder, list) and key == len(holder):
            holder.append(value)
        else:
            holder[key] = value


def holder_of(
    location: Location, tree: nn.Module, inputs: Mapping[str, Any] = {}
) -> tuple[Any, Any]:
    """The container of ``location`` in ``tree`` (or in the ``inputs``), and the key in it.

    Raises ``LookupError`` where the way does not exist.
    """
    held, last = owner_of(location, tree, inputs), location.steps[-1]
    return (_namespace(held, last.key) if last.kind == "attribute" else held), last.key


def owner_of(location: Location, tree: nn.Module, inputs: Mapping[str, Any] = {}) -> Any:
    """The object or container of ``location``.

    Raises ``LookupError`` where the way does not exist.
    """
    held: Any = inputs if location.root == INPUTS else tree.get_submodule(location.root)
    for step in location.steps[:-1]:
        is_attribute = step.kind == "attribute"
        held = (_namespace(held, step.key) if is_attribute else inside(held) or held)[step.key]
    return held


def finds(location: Location, cell: Cell, tree: nn.Module) -> bool:
    """Does ``location``, of an entry of ``cell``, lead there in ``tree``?

    Not from a function to its closure. So a copy of the tree has a cell of its own.
    """
    try:
        found = owner_of(location, tree)
    except (LookupError, AttributeError, TypeError):
        return False
    return found is (cell.container if cell.owner is None else cell.owner)


def _namespace(held: Any, name: str) -> Any:
    """The namespace in which an object keeps, or would keep, the attribute of this name."""
    found = namespaces(held)
    return next((names for names in found if name in names), found[0])
