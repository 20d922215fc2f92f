"""The table between estimation and planning: value → RMS, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rms:
    """Root mean square of a value and of its gradient, at true scale.

    None for a value without gradient, and where it was not estimated.
    """

    forward: float | None = None
    backward: float | None = None


Estimates = Mapping[str, Rms]
