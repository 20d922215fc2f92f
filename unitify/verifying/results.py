"""``Results``: everything that a call does, by name: results, gradients, the state it leaves."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.effects import INPUTS
from unitify.capture.equality import same
from unitify.capture.reachable import MISSING, PLAIN, Cell, Location, cells, set_on
from unitify.capture.watching import HOOKS


@dataclass
class Results:
    """Results of one call by name. ``left``: every entry of the model's containers that the call
    changed, or into which it wrote; ``entries``: all entries before it.
    """

    named: dict[str, Any] = field(default_factory=dict)
    left: dict[Location, Any] = field(default_factory=dict)
    entries: tuple[tuple[Cell, dict[Any, Any]], ...] = ()

    def share(self, other: Results) -> None:
        """Hold the tensors of ``other`` where they are bitwise the same, in place of its own."""
        pairs: Any = (self.named, other.named), (self.left, other.left)
        for own, theirs in pairs:
            for name, value in own.items():
                held = theirs.get(name)
                if isinstance(value, Tensor) and isinstance(held, Tensor) and same(value, held):
                    own[name] = held

    @functools.cached_property
    def before(self) -> Mapping[Location, Any]:
        """The entries before the call, which hold after it, too, where ``left`` has none."""
        return {
            place_of(cell, key): value_of(value)
            for cell, held in self.entries
            for key, value in held.items()
        }


def note_output(found: Results, output: Any) -> None:
    """Add what a call returns, leaf by leaf."""
    leaves, spec = pytree.tree_flatten(output)
    takes = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    found.named["structure of the output"] = f"{spec}, with gradients: {takes}"
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            found.named[f"output {i}"] = leaf.detach().clone()
            found.named |= {f"output {i}: {name}": x for name, x in attached(leaf)}
        elif isinstance(leaf, PLAIN) or not hasattr(leaf, "__dict__"):
            found.named[f"output {i}"] = leaf
        else:
            found.named |= {f"output {i}: {name}": x for name, x in _held_by(leaf)}


def attached(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """What Python code has set on a tensor under a public name."""
    if not isinstance(tensor, nn.Parameter):
        for name, held in set_on(tensor).items():
            if isinstance(held, (Tensor, *PLAIN)):
                yield name, held.detach().clone() if isinstance(held, Tensor) else held


def _held_by(value: Any) -> Iterator[tuple[str, Any]]:
    """The class of an object, such as a cache, and the tensors and numbers that it holds."""
    yield "class", type(value)
    for cell in cells(nn.Module(), value):
        for key, held in cell.entries().items() if cell.location.root == INPUTS else ():
            if isinstance(held, (Tensor, *PLAIN)):
                held = held.detach().clone() if isinstance(held, Tensor) else held
                yield str(cell.location.then(cell.step, key)), held


def place_of(cell: Cell, key: Any) -> Location:
    """The place of an entry, the same in a model and its copy.

    Hooks have numbers that no two modules share: their order counts.
    """
    steps = cell.location.steps
    if steps and steps[-1].key in HOOKS:
        keys = list(cell.entries())
        key = keys.index(key) if key in keys else key
    return cell.location.then(cell.step, key if isinstance(key, PLAIN) else repr(key))


def value_of(value: Any) -> Any:
    """The comparable content of an entry: numbers and tensors, in their structure."""
    if isinstance(value, PLAIN) or value is MISSING:
        return value
    if isinstance(value, Tensor):
        # A later call may write into it, but not into a parameter.
        return value.detach() if isinstance(value, nn.Parameter) else value.detach().clone()
    if isinstance(value, dict | list | tuple) and not value:
        return [f"an empty {type(value).__name__}"]
    leaves, spec = pytree.tree_flatten(value)
    if not all(isinstance(leaf, (Tensor, *PLAIN)) for leaf in leaves):
        return type(value).__name__
    return [str(spec), *(leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves)]


def named(results: list[Results]) -> dict[str, Any]:
    """The results of calls in a row, by name; names of the second call say so."""
    return {
        (f"{name}, call {i + 1}" if i else name): value
        for i, one in enumerate(results)
        for name, value in one.named.items()
    }


def left(mine: list[Results], theirs: list[Results]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of both runs that either run changed."""
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        for place in sorted(a.left.keys() | b.left.keys(), key=str):
            name = f"{place} as the call leaves it{f', call {i + 1}' if i else ''}"
            for one, held in zip((a, b), found, strict=True):
                before = MISSING if place in one.left else one.before.get(place, MISSING)
                _spread(held, name, one.left.get(place, before))
    return found


def _spread(held: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, list):
        held.update({f"{name} ({i})": item for i, item in enumerate(value)})
    elif value is not MISSING:
        held[name] = value


def results_of(mine: list[Results], theirs: list[Results]) -> tuple[Mapping[str, Any], ...]:
    """The results of two runs, by name, ready to compare."""
    ours, others = left(mine, theirs)
    return {**named(mine), **ours}, {**named(theirs), **others}
