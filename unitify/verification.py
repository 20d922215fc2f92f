"""What a comparison of the transformed module with the original found. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from unitify.diagnostics import Diagnostic


@dataclass(frozen=True)
class Difference:
    """One tensor that differs: its name, the largest absolute and relative difference."""

    name: str
    largest: float
    relative: float

    def __str__(self) -> str:
        return f"{self.name} by {self.largest:.3g} ({self.relative:.3g} of its RMS)"


@dataclass(frozen=True)
class Verification:
    """``exact``: bitwise the captured original. ``differences`` names what is not.

    ``compared``: how many tensors were compared by running both; none on the meta device.
    ``model_differences``: where the captured graph itself differs from the model as run eagerly
    (other kernels, chosen for other shapes or masks); empty for most models.
    ``findings``: where the graph does not follow the one equation, found without running it.
    """

    exact: bool
    compared: int
    differences: tuple[Difference, ...] = ()
    model_differences: tuple[Difference, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
