"""Attributes that a graph was recorded with: are they still what they were?

A recording holds the numbers, flags and containers that the model's code read. Whoever turns one on
the finished module (``dropout.p = 0``) means the code to read it. So each call looks whether all of
them are as they were, which takes some 40 ns each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unitify.capture.effects import place
from unitify.capture.places import MISSING, Location, is_same

#: Containers with more entries are compared by their number alone.
_MANY = 256
#: Paths of the modules whose code reads an entry.
_Readers = frozenset[str]


class Knobs:
    """The entries of a tree of modules that its graph holds, and what they were."""

    def __init__(self, tree: nn.Module, reads: Mapping[Location, _Readers]) -> None:
        """``reads``: entries that the code of modules reads, each with their paths."""
        #: A namespace, the name in it, what stands there, and the way to it.
        self.names: list[tuple[Mapping[Any, Any], Any, Any, Location, _Readers]] = []
        #: A list, its entries; any other container, how many it has.
        self.lists: list[tuple[Any, list[Any], Location, _Readers]] = []
        self.sizes: list[tuple[Any, int, Location, _Readers]] = []
        self.seen: set[int] = set()
        for location, readers in reads.items():
            try:
                container, key = place(location, tree)
            except (LookupError, AttributeError, TypeError):
                continue  # Not in the tree: a closure's or a global's, which no one turns here.
            self._note(container, key, location, readers)
            if len(location.steps) == 1 and key not in container:
                self._note_class(tree.get_submodule(location.root), key, location, readers)
        for path, module in tree.named_modules():
            where, own = Location(path), frozenset([path])
            self._enter(module._modules, where.then("attribute", "_modules"), own)
            for name, child in module.named_children():
                inner = Location(f"{path}.{name}" if path else name)
                self._note(vars(child), "forward", inner.then("attribute", "forward"), own)
        self._note(vars(tree), "forward", Location("").then("attribute", "forward"), frozenset())
        self._inside: dict[str, Knobs] = {}

    def _note(self, container: Any, key: Any, location: Location, readers: _Readers) -> None:
        if isinstance(container, dict):
            value = container.get(key, MISSING)
            self.names.append((container, key, value, location, readers))
            self._enter(value, location, readers)

    def _note_class(
        self, module: nn.Module, name: str, location: Location, readers: _Readers
    ) -> None:
        """Where a name that was read is the class's, it is looked at there, too."""
        for kind in type(module).__mro__:
            if name in vars(kind):
                self.names.append((vars(kind), name, vars(kind)[name], location, readers))
                return

    def _enter(self, value: Any, location: Location, readers: _Readers) -> None:
        if not isinstance(value, dict | list | set | deque) or id(value) in self.seen:
            return
        self.seen.add(id(value))
        if isinstance(value, list) and len(value) <= _MANY:
            self.lists.append((value, list(value), location, readers))
            for index, item in enumerate(value):
                self._enter(item, location.then("item", index), readers)
            return
        self.sizes.append((value, len(value), location, readers))
        if isinstance(value, dict) and len(value) <= _MANY:
            for key in value:
                self._note(value, key, location.then("item", key), readers)

    def inside(self, path: str) -> Knobs:
        """Those that the code of the submodule at ``path``, or one inside of it, reads."""
        if path not in self._inside:
            below = f"{path}."

            def concerns(readers: _Readers) -> bool:
                return any(r == path or r.startswith(below) for r in readers)

            made = self._inside[path] = Knobs.__new__(Knobs)
            made.names = [entry for entry in self.names if concerns(entry[-1])]
            made.lists = [entry for entry in self.lists if concerns(entry[-1])]
            made.sizes = [entry for entry in self.sizes if concerns(entry[-1])]
        return self._inside[path]

    def turned(self) -> Location | None:
        """The first entry that is another than it was; None where all are the same."""
        for namespace, name, expected, location, _ in self.names:
            now = namespace.get(name, MISSING)
            if now is not expected and not is_same(now, expected):
                return location
        for held, entries, location, _ in self.lists:
            if len(held) != len(entries) or not all(map(is_same, held, entries)):
                return location
        for held, size, location, _ in self.sizes:
            if len(held) != size:
                return location
        return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def turned_now(knobs: Knobs) -> str | None:
    """The first entry that is another than it was, as code is compiled."""
    found = knobs.turned()
    return None if found is None else str(found)
