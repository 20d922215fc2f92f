"""The state in which a model is recorded: it holds what its first call makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.example import call_quietly, copied, mapped
from unitify.capture.exporting import without_cache
from unitify.capture.observing import Observed
from unitify.capture.reachable import Location, cells
from unitify.capture.state import kept, seeded


@dataclass(frozen=True)
class Settled:
    """``made``: what a first call makes for good. ``carried``: tensors that calls store again,
    by identity, with their names. A graph that held one would keep an old one.
    """

    made: tuple[tuple[Location, Any], ...] = ()
    carried: Mapping[int, str] = field(default_factory=dict)


@contextlib.contextmanager
def settled(
    model: nn.Module, observed: Observed, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Settled]:
    """Inside, ``model`` holds what its first call makes. It is restored afterwards."""
    with kept(model) as before:
        if not (observed.made or observed.changing):
            yield Settled()
            return
        observed.numbers.again()
        given, named = mapped(copied, (args, kwargs))
        with seeded(model), without_cache(model), contextlib.suppress(Exception):
            call_quietly(model, given, named)
        left = {change.location: change for change in before.changes()}
        before.put_back()
        made = {where: left[where] for where in observed.made if where in left}
        carried: dict[int, str] = {}
        for where, change in left.items():
            if where in made or where in observed.changing:
                change.cell.set(change.key, change.after)
            if where not in made:
                tensors = [x for x in pytree.tree_leaves(change.after) if isinstance(x, Tensor)]
                carried.update((id(tensor), str(where)) for tensor in tensors)
        yield Settled(tuple((where, change.after) for where, change in made.items()), carried)


def install(made: Iterable[tuple[Location, Any]], tree: nn.Module) -> None:
    """Give ``tree``, a copy of the model as it was, copies of what a first call makes."""
    for location, value in made:
        key = location.steps[-1].key
        for cell in cells(tree):
            if cell.location.then(cell.step, key) == location:
                cell.set(key, pytree.tree_map(copied, value))
