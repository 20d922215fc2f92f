"""What a comparison of the transformed module with the original found. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from unitify.diagnostics import Diagnostic


@dataclass(frozen=True)
class Difference:
    """One result that differs: its name, the largest absolute and relative difference.

    ``is_underflow``: no element differs by as much as the smallest normal number of the type, and
    only those differ that are so small in the original that what is below that number reaches their
    last digit. The format rounds it to fixed steps, so that power-of-two scaling is not exact
    there, and there alone.
    """

    name: str
    largest: float
    relative: float
    is_underflow: bool = False

    def __str__(self) -> str:
        return f"{self.name} by {self.largest:.3g} ({self.relative:.3g} of its RMS)"


@dataclass(frozen=True)
class Verification:
    """Is the module the model? Every result of the model itself was compared with the module's.

    ``exact``: all of them are bitwise the same. ``compared``: how many there were, over all
    ``calls`` that were made of both (a call is named by its mode and its inputs). ``differences``:
    what differs by more than rounding. ``rounding``: what differs, and is as near to the original
    in double precision as the original is (``verify.yardstick``). ``underflows``: what differs by
    less than the smallest normal number. ``refused``: calls that the module refuses by a code, and
    the code. ``findings``: what validation without running found. ``notes``: what the model's own
    numbers show.
    """

    exact: bool
    compared: int
    differences: tuple[Difference, ...] = ()
    rounding: tuple[Difference, ...] = ()
    underflows: tuple[Difference, ...] = ()
    calls: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    notes: tuple[Diagnostic, ...] = ()

    @property
    def rounded_otherwise(self) -> tuple[Difference, ...]:
        """All that differs and is accepted."""
        return self.rounding + self.underflows

    @property
    def is_accepted(self) -> bool:
        """Is there nothing but rounding between the two?"""
        return not (self.differences or self.findings)
