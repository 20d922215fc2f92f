"""Powers of two, such as scales and factors: tests and exponents."""

from __future__ import annotations

import math


def exponent_of(factor: float) -> int:
    """log2 of a power of two, exactly; for another number, log2 of the next lower power."""
    return math.frexp(factor)[1] - 1


def is_power_of_two(factor: float) -> bool:
    """Is it a positive, finite power of two?"""
    return 0 < factor < math.inf and math.frexp(factor)[0] == 0.5
