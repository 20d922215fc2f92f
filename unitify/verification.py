"""What a comparison of the transformed module with the original found. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from unitify.diagnostics import Diagnostic


@dataclass(frozen=True)
class Difference:
    """One tensor that differs: its name, the largest absolute and relative difference.

    ``is_underflow``: no element differs by as much as the smallest normal number of the type, and
    only those differ that are so small in the original that what is below that number reaches their
    last digit. The format rounds it to fixed steps, so that power-of-two scaling is not exact
    there, and there alone.
    ``is_rounding``: relative to the tensor's RMS it is below the square root of the type's
    precision, which other kernels for the same sums stay well below.
    """

    name: str
    largest: float
    relative: float
    is_underflow: bool = False
    is_rounding: bool = False

    def __str__(self) -> str:
        return f"{self.name} by {self.largest:.3g} ({self.relative:.3g} of its RMS)"


@dataclass(frozen=True)
class Verification:
    """``exact``: bitwise the captured original, away from underflow. ``differences``: what is not.

    ``underflows``: tensors that differ by less than the smallest normal number, and nothing more.
    ``model_differences``: where the captured graph itself differs from the model as run eagerly
    (other kernels, chosen for other shapes or masks); empty for most models. ``findings``: what
    validation without running found.
    """

    exact: bool
    compared: int
    differences: tuple[Difference, ...] = ()
    underflows: tuple[Difference, ...] = ()
    model_differences: tuple[Difference, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
