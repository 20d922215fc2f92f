"""``Cast``: one rounding that a recipe makes, from the choice of it to the check of it."""

from __future__ import annotations

from dataclasses import dataclass

from unitify.formats.table import FORMATS

#: Where a cast stands: the operation's name, the argument's, and the index among its tensors. The
#: result of an operation has "" for the argument.
Place = tuple[str, str, int]
#: No float has a larger one.
_LARGEST_EXPONENT = 1023


@dataclass(frozen=True)
class Cast:
    """x becomes mean + 2^e · round((x − mean) / 2^e), for an x near unit RMS.

    - ``place``: an operand of an operation, or its result. Names are those of the part's graph
    - ``value``: the value that is rounded; with ``is_gradient`` its gradient is
    - ``format``: by name
    - ``exponent``: e, the headroom, beside the unit in which the plan brings x near unit RMS
    - ``mean``: of each channel, at true scale, where the deviation from it is cast; else empty
    """

    place: Place
    value: str
    format: str
    is_gradient: bool = False
    exponent: int = 0
    mean: tuple[float, ...] = ()

    def check(self) -> None:
        """Check a cast from a file. Raises ``ValueError`` where no recipe makes it."""
        if self.format not in FORMATS or abs(self.exponent) > _LARGEST_EXPONENT:
            raise ValueError(f"a cast to {self.format!r} at 2^{self.exponent}")
