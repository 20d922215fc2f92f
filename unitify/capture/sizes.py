"""The free sizes of a recording: fewer where a recording takes too long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from unitify.capture.signature import Leaf
from unitify.diagnostics import FrozenDimension

#: The default time limit of a recording with free sizes. 30 layers of a language model take less
#: than a minute (docs/results/drawn_inputs.md).
RECORDING_SECONDS = 120.0


@dataclass(frozen=True)
class Free:
    """The first ``count`` sizes of every tensor are free; None: all of them."""

    count: int | None = None

    def of(self, dimensions: int) -> range:
        """The free sizes of a tensor with so many dimensions."""
        return range(dimensions if self.count is None else min(dimensions, self.count))

    def __str__(self) -> str:
        if self.count is None:
            return "all sizes"
        return ("no sizes", "batch sizes", "batch sizes and lengths")[self.count]


def fewer_and_fewer(dynamic_shapes: Any, inputs: Any) -> Iterator[Any]:
    """Free sizes to try, in order: those asked for, then fewer, at last none.

    Of ``inputs`` with two dimensions (tokens) batch sizes and lengths are all sizes.
    """
    yield dynamic_shapes
    if dynamic_shapes is not None:
        if dynamic_shapes == "auto":
            tensors = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
            most = max((tensor.dim() for tensor in tensors), default=0)
            yield from (Free(count) for count in (2, 1) if count < most)
        yield Free(0)


def frozen_dimensions(leaves: Iterable[Leaf]) -> list[FrozenDimension]:
    """Batches that the model fixes, although the user did not ask for that."""
    return [
        FrozenDimension(
            where=leaf.name, dimension=f"dimension 0 of {leaf.name}", size=leaf.shape[0]
        )
        for leaf in leaves
        if leaf.shape and isinstance(leaf.shape[0], int)
    ]
