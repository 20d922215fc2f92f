"""What a run of a captured graph is counted into: RMS of every value and of its gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.operations.laws import is_scalable


class Tally:
    """Sums of squares and element counts by (value, direction)."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], list[float]] = {}

    def observe(self, node: fx.Node, value: Any) -> None:
        """Count a result as its node is run, and its gradient when that arrives."""
        if not is_scalable(node) or not isinstance(value, Tensor):
            return
        self.add(node.name, 0, value)
        if value.requires_grad:
            value.register_hook(lambda gradient: self.add(node.name, 1, gradient))

    def estimates(self, capture: Capture) -> Estimates:
        """What was counted, for every floating value of ``capture``."""
        return {
            node.name: Rms(self.rms(node.name, 0), self.rms(node.name, 1))
            for node in capture.graph.nodes
            if is_scalable(node)
        }

    def add(self, name: str, direction: int, tensor: Tensor) -> None:
        """Count ``tensor`` as value (0) or gradient (1) of ``name``."""
        norm = float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
        entry = self.sums.setdefault((name, direction), [0.0, 0.0])
        entry[0] += norm * norm
        entry[1] += tensor.numel()

    def rms(self, name: str, direction: int) -> float | None:
        """Root mean square of all that was counted; None for nothing."""
        if (name, direction) not in self.sums:
            return None
        total, count = self.sums[name, direction]
        return math.sqrt(total / count) if count else None
