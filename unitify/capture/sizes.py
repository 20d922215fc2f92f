"""Which sizes of the inputs a recording leaves free: fewer where that takes too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from unitify.capture.signature import Leaf
from unitify.diagnostics import FrozenDimension

#: How long a recording with free sizes may take, unless the user says otherwise.
RECORDING_SECONDS = 120.0


@dataclass(frozen=True)
class Free:
    """The first ``count`` sizes of every tensor are free; None: all of them."""

    count: int | None = None

    def of(self, dimensions: int) -> range:
        """The free ones of a tensor of so many dimensions."""
        return range(dimensions if self.count is None else min(dimensions, self.count))

    def __str__(self) -> str:
        if self.count is None:
            return "all sizes"
        return ("no sizes", "batch sizes", "batch sizes and lengths")[self.count]


def fewer_and_fewer(dynamic_shapes: Any) -> Iterator[Any]:
    """What to leave free: what was asked for, then less, and in the end nothing."""
    yield dynamic_shapes
    if dynamic_shapes is not None:
        if dynamic_shapes == "auto":
            yield from (Free(2), Free(1))
        yield Free(0)


def frozen_dimensions(leaves: Iterable[Leaf]) -> list[FrozenDimension]:
    """Batches that the model fixes, though nobody asked for that."""
    return [
        FrozenDimension(
            where=leaf.name, dimension=f"dimension 0 of {leaf.name}", size=leaf.shape[0]
        )
        for leaf in leaves
        if leaf.shape and isinstance(leaf.shape[0], int)
    ]
