"""How the magnitudes of a value lie on the exponents of floating-point numbers.

Takes tensors as they pass by (``MagnitudeTally``); gives ``Magnitudes``: counts of |x| in eighths
of each octave, which is where three mantissa bits change. A scale that is a power of two moves them
by whole octaves, so one histogram of the true value serves the original and the stored value alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unitify.capture.whole import Capture
from unitify.measure.tally import Tally
from unitify.operations.laws import is_scalable

#: Bins an octave: |x| in [2^e · (1 + i/8), 2^e · (1 + (i+1)/8)).
EIGHTHS = 8
#: Exponents that are told apart; what lies beyond counts to the last ones.
LOWEST, HIGHEST = -150, 128


@dataclass(frozen=True)
class Magnitudes:
    """Counts of non-zero finite elements by magnitude, from exponent ``first`` (log2) on.

    ``counts``: eight an octave. ``zeros`` and ``special`` (infinite or NaN) are counted apart.
    """

    first: int
    counts: tuple[float, ...]
    zeros: float = 0.0
    special: float = 0.0

    @property
    def total(self) -> float:
        """Non-zero finite elements."""
        return math.fsum(self.counts)

    def octaves(self) -> tuple[float, ...]:
        """The share of non-zero elements in each octave, from ``first`` on."""
        total = self.total or 1.0
        sums = (math.fsum(self.counts[i : i + EIGHTHS]) for i in range(0, len(self.counts), 8))
        return tuple(s / total for s in sums)

    def below(self, bound: float) -> float:
        """The share of non-zero elements with |x| < ``bound``; bins are flat inside."""
        if not bound > 0:
            return 0.0
        mantissa, exponent = math.frexp(bound)
        # frexp gives [1/2, 1); bins start at 2^e with a mantissa in [1, 2).
        place = (exponent - 1 - self.first) * EIGHTHS + (2 * mantissa - 1) * EIGHTHS
        if place <= 0:
            return 0.0
        whole = min(int(place), len(self.counts))
        count = math.fsum(self.counts[:whole])
        if whole < len(self.counts):
            count += self.counts[whole] * (place - whole)
        return count / (self.total or 1.0)


def magnitudes_of(tensor: Tensor) -> Magnitudes:
    """Those of one tensor."""
    return _trimmed(_counted(tensor.detach()))


class MagnitudeTally(Tally):
    """A tally that also counts magnitudes. On the device of the tensors, without waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[tuple[str, int], Tensor] = {}

    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        """Count ``tensor`` as value (0) or gradient (1) of ``name``."""
        super().add(name, direction, tensor)
        counts = _counted(tensor.detach())
        held = self.counts.get((name, direction))
        self.counts[name, direction] = counts if held is None else held + counts

    def magnitudes(self, capture: Capture) -> Mapping[tuple[str, int], Magnitudes]:
        """What was counted of the values (0) and gradients (1) of ``capture``, by name."""
        names = {node.name for node in capture.graph.nodes if is_scalable(node)}
        return {key: _trimmed(c) for key, c in self.counts.items() if key[0] in names}


def _counted(tensor: Tensor) -> Tensor:
    """Counts of zeros, special values, then magnitudes from ``LOWEST`` on."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    x = tensor.flatten()
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    mantissa, exponent = torch.frexp(x.abs())
    place = (exponent - 1 - LOWEST) * EIGHTHS + ((2 * mantissa - 1) * EIGHTHS).long()
    place = place.clamp(0, (HIGHEST - LOWEST) * EIGHTHS - 1) + 2
    place = torch.where(x == 0, 0, torch.where(x.isfinite(), place, 1))
    return torch.bincount(place, minlength=(HIGHEST - LOWEST) * EIGHTHS + 2)


def _trimmed(counted: Tensor) -> Magnitudes:
    zeros, special, *counts = counted.tolist()
    held = [i for i, count in enumerate(counts) if count]
    if not held:
        return Magnitudes(0, (), zeros, special)
    first, last = held[0] // EIGHTHS, held[-1] // EIGHTHS
    own = counts[first * EIGHTHS : (last + 1) * EIGHTHS]
    return Magnitudes(first + LOWEST, tuple(map(float, own)), zeros, special)
