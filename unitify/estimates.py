"""The immutable table between estimation and planning: value → RMS, both directions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rms:
    """Root mean square of a value and of the gradient that reaches it, at true scale.

    None where there is none: a value without gradient, or one that was not estimated.
    """

    forward: float | None = None
    backward: float | None = None


Estimates = Mapping[str, Rms]

#: A gradient below this share of the typical one may be rounding alone.
_ROUNDING = 2.0**-16


def without_rounding(measured: Estimates, predicted: Estimates) -> Estimates:
    """``measured`` in which gradients are zero that are zero but for rounding.

    They are predicted to be exactly zero (a bias before a batch norm, a key's bias), and are small
    beside the median of all gradients: what was measured of them says nothing of a scale.
    """
    sizes = [rms.backward for rms in measured.values() if rms.backward]
    limit = _ROUNDING * statistics.median(sizes) if sizes else 0.0
    return {
        name: replace(rms, backward=0.0)
        if rms.backward is not None
        and rms.backward <= limit
        and predicted.get(name, Rms()).backward == 0
        else rms
        for name, rms in measured.items()
    }
