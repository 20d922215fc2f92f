"""The result of a comparison of the transformed module with the original, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from unitify.diagnostics import Diagnostic


@dataclass(frozen=True)
class Difference:
    """One result that differs: its name, the largest absolute and relative difference.

    ``is_underflow``: every difference is below the smallest normal number of the type, and only
    elements differ whose last digit in the original is below that number. Subnormal numbers have a
    fixed spacing, so scaling by a power of two is not exact there, and only there.
    """

    name: str
    largest: float
    relative: float
    is_underflow: bool = False

    def __str__(self) -> str:
        return f"{self.name} by {self.largest:.3g} ({self.relative:.3g} of its RMS)"


@dataclass(frozen=True)
class Verification:
    """Is the module the model? Every result of the model was compared with the module's.

    ``exact``: all results are bitwise the same. ``compared``: the number of results in all
    ``calls`` of both (a call is named by its mode and its inputs). ``differences``: results that
    differ by more than rounding. ``rounding``: results that differ, but are as near to the original
    in double precision as the original itself (``verify.yardstick``). ``underflows``: results that
    differ by less than the smallest normal number. ``refused``: calls that the module refuses, with
    the code. ``findings``: diagnostics of the validation without a run. ``notes``: diagnostics of
    the model's own numbers.
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
        """All accepted differences."""
        return self.rounding + self.underflows

    @property
    def is_accepted(self) -> bool:
        """Do the two differ by rounding only?"""
        return not (self.differences or self.findings)
