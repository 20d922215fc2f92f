"""Number formats that values can be cast to: their torch type and their largest value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """A floating-point format of few bits.

    Bits as in Micikevicius et al. 2022 (arXiv 2209.05433), table 1.
    """

    name: str
    dtype: torch.dtype
    exponent_bits: int
    mantissa_bits: int

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return float(torch.finfo(self.dtype).max)


E4M3 = Format("e4m3", torch.float8_e4m3fn, 4, 3)
E5M2 = Format("e5m2", torch.float8_e5m2, 5, 2)

FORMATS = {f.name: f for f in (E4M3, E5M2)}


def quantise(x: Tensor, format: Format) -> Tensor:
    """``x`` rounded to ``format`` (nearest, ties to even) and held in its own type again.

    Saturates: values beyond the largest become the largest. Infinity and NaN become NaN, so
    that an overflow before the cast stays visible (casts of the CPU build would hide an
    infinity as the largest value).
    """
    limit = format.largest
    rounded = x.clamp(-limit, limit).to(format.dtype).to(x.dtype)
    return torch.where(x.isfinite(), rounded, torch.nan)
