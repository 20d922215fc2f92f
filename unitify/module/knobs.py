"""Attributes that a graph was recorded with: are they still what they were?

A recording holds the numbers, flags and containers that the model's code read. Whoever turns one on
the finished module (``dropout.p = 0``) means the code to read it. So each call looks whether all of
them are as they were, which takes some 40 ns each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from unitify.capture.effects import place
from unitify.capture.places import MISSING, Location, is_same

#: Containers with more entries are compared by their number alone.
_MANY = 256


class Knobs:
    """The entries of a tree of modules that its graph holds, and what they were."""

    def __init__(self, tree: nn.Module, locations: Iterable[Location]) -> None:
        self.tree, self.locations = tree, tuple(locations)
        self._look()

    def _look(self) -> None:
        """Note what everything is now."""
        tree = self.tree
        #: A namespace, the name in it, what stands there, and the way to it.
        self.names: list[tuple[Mapping[Any, Any], Any, Any, Location]] = []
        #: A list, its entries; any other container, how many it has.
        self.lists: list[tuple[Any, list[Any], Location]] = []
        self.sizes: list[tuple[Any, int, Location]] = []
        self.seen: set[int] = set()
        for location in self.locations:
            try:
                container, key = place(location, tree)
            except (LookupError, AttributeError, TypeError):
                continue  # Not in the tree: a closure's or a global's, which no one turns here.
            self._note(container, key, location)
            if len(location.steps) == 1 and key not in container:
                self._note_class(tree.get_submodule(location.root), key, location)
        for path, module in tree.named_modules():
            where = Location(path)
            self._enter(module._modules, where.then("attribute", "_modules"))
            self._note(vars(module), "forward", where.then("attribute", "forward"))

    def _note(self, container: Any, key: Any, location: Location) -> None:
        if isinstance(container, dict):
            value = container.get(key, MISSING)
            self.names.append((container, key, value, location))
            self._enter(value, location)

    def _note_class(self, module: nn.Module, name: str, location: Location) -> None:
        """Where a name that was read is the class's, it is looked at there, too."""
        for kind in type(module).__mro__:
            if name in vars(kind):
                self.names.append((vars(kind), name, vars(kind)[name], location))
                return

    def _enter(self, value: Any, location: Location) -> None:
        if not isinstance(value, dict | list | set | deque) or id(value) in self.seen:
            return
        self.seen.add(id(value))
        if isinstance(value, list) and len(value) <= _MANY:
            self.lists.append((value, list(value), location))
            for index, item in enumerate(value):
                self._enter(item, location.then("item", index))
            return
        self.sizes.append((value, len(value), location))
        if isinstance(value, dict) and len(value) <= _MANY:
            for key in value:
                self._note(value, key, location.then("item", key))

    def turned(self) -> Location | None:
        """The first entry that is another than it was; None where all are the same."""
        is_exchanged = False
        for namespace, name, expected, location in self.names:
            now = namespace.get(name, MISSING)
            if now is expected or is_same(now, expected):
                continue
            if not _is_equal(now, expected):
                return location
            is_exchanged = True
        for held, entries, location in self.lists:
            if len(held) != len(entries) or not all(map(is_same, held, entries)):
                return location
        for held, size, location in self.sizes:
            if len(held) != size:
                return location
        if is_exchanged:
            # Equal containers have taken the places of others, as ``torch.export`` does it: from
            # now on they are what may be turned.
            self._look()
        return None


def _is_equal(a: Any, b: Any) -> bool:
    """Are these the same, or containers of one type with the same contents?"""
    if a is b or is_same(a, b):
        return True
    if type(a) is not type(b) or not isinstance(a, dict | list | tuple | deque):
        return False
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(key in b and _is_equal(value, b[key]) for key, value in a.items())
    return all(map(_is_equal, a, b))
