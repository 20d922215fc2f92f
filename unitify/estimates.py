"""The immutable table between estimation and planning: value → RMS, both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rms:
    """Root mean square of a value and of the gradient that reaches it, at true scale.

    None where there is none: a value without gradient, or one that was not estimated.
    """

    forward: float | None = None
    backward: float | None = None


Estimates = Mapping[str, Rms]
