"""Attributes that a graph was recorded with: are they still what they were?

A recording holds the numbers, flags and containers that the model's code read. Whoever turns one on
the finished module (``dropout.p = 0``) means the code to read it. So each call looks whether all of
them are as they were, which takes some 40 ns each. Number types are looked at, too (``types``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from unitify.capture.effects import place
from unitify.capture.places import MISSING, Location, is_same
from unitify.module.types import Types

#: Containers with more entries are compared by their number alone.
_MANY = 256


class Knobs:
    """The entries of a tree of modules that its graph holds, and what they were.

    ``part``: the module on whose tensors the graph runs. ``before``: those of the module that this
    one is a copy of; what was turned there is turned here.
    """

    def __init__(
        self,
        tree: nn.Module,
        locations: Iterable[Location],
        part: nn.Module,
        before: Knobs | None = None,
    ) -> None:
        self.types: Types = Types(part, None if before is None else before.types.recorded)
        self.was_turned = None if before is None else before.turned_attribute()
        #: A namespace, the name in it, what stands there, and the way to it.
        self.names: list[tuple[Mapping[Any, Any], Any, Any, Location]] = []
        #: A list, its entries; any other container, how many it has.
        self.lists: list[tuple[Any, list[Any], Location]] = []
        self.sizes: list[tuple[Any, int, Location]] = []
        self.seen: set[int] = set()
        for location in locations:
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

    def turned(self, by_autocast: bool) -> str | None:
        """The first entry or type that is another than it was; None where all are the same.

        ``by_autocast``: does what it does to types count, or is the graph run under it?
        """
        changed = self.types.changed()
        if changed is not None and (by_autocast or changed != "autocast"):
            return f"the type of {changed}"
        found = None if torch.compiler.is_compiling() else self.turned_attribute()
        return None if found is None else str(found)

    def turned_attribute(self) -> Location | None:
        """The first entry that is another than it was; None where all are the same."""
        if self.was_turned is not None:
            return self.was_turned
        for namespace, name, expected, location in self.names:
            now = namespace.get(name, MISSING)
            if now is not expected and not is_same(now, expected):
                return location
        for held, entries, location in self.lists:
            if len(held) != len(entries) or not all(map(is_same, held, entries)):
                return location
        for held, size, location in self.sizes:
            if len(held) != size:
                return location
        return None
