"""``Tally`` counts the tensors of a run: sums of squares and, on request, magnitudes.

Measurement, checks, reports, headroom and monitors use it. Sums stay on the device of the tensors
and are read at the end, so that no device waits. Those of the CPU are read at once: small tensors
that stay between large ones keep the system from taking freed memory back.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import on_gradient
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.formats.magnitudes import Magnitudes, counted, from_counts, stored
from unitify.rulebook.laws import is_scalable

#: The name of a value, and 0 for the value or 1 for its gradient.
Key = tuple[str, int]


class Tally:
    """Sums by (value, direction). ``counts_magnitudes``: a histogram of each as well.

    ``only``: the keys that are counted; None counts all.
    """

    def __init__(self, counts_magnitudes: bool = False, only: Container[Key] | None = None) -> None:
        self.counts_magnitudes, self.only = counts_magnitudes, only
        self.squares: dict[Key, Tensor | float] = {}
        self.elements: dict[Key, int] = {}
        self.counts: dict[Key, Tensor] = {}

    def observe(self, node: fx.Node, value: Any) -> None:
        """Count the result of a node, and its gradient when that arrives."""
        if not is_scalable(node) or not isinstance(value, Tensor):
            return
        self.add(node.name, 0, value)
        if value.requires_grad:
            on_gradient(value, lambda gradient: self.add(node.name, 1, gradient))

    @torch.no_grad()
    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        """Count ``tensor`` as value (0) or gradient (1) of ``name``."""
        key = name, direction
        if self.only is not None and key not in self.only:
            return
        tensor = stored(tensor.detach())
        norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
        squares = float(norm) ** 2 if norm.device.type == "cpu" else norm * norm
        self.squares[key] = self.squares[key] + squares if key in self.squares else squares
        self.elements[key] = self.elements.get(key, 0) + tensor.numel()
        if self.counts_magnitudes:
            counts = counted(tensor)
            self.counts[key] = self.counts[key] + counts if key in self.counts else counts

    def rms(self, name: str, direction: int) -> float | None:
        """Root mean square of all counted tensors; None without any."""
        count = self.elements.get((name, direction), 0)
        return math.sqrt(float(self.squares[name, direction]) / count) if count else None

    def estimates(self, capture: Capture) -> Estimates:
        """The RMS of every floating value of ``capture`` and of its gradient."""
        return {
            node.name: Rms(self.rms(node.name, 0), self.rms(node.name, 1))
            for node in capture.graph.nodes
            if is_scalable(node)
        }

    def magnitudes(self) -> dict[Key, Magnitudes]:
        """The histogram of every key."""
        return {key: from_counts(counts) for key, counts in self.counts.items()}
