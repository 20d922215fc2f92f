"""``unitify::center``, ``unitify::uncenter``: a contraction of the deviation from a mean.

    f(x, w)  =  f(x − mean, w)  +  f(mean, w)

The operands of the first term are rounded. The second term is not: it is one row for any batch.
Any mean gives the right result. A mean near the operand's own makes the deviation, and so the
rounding, small. Both operators consist of torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, library

_library = library.Library("unitify", "FRAGMENT")
_library.define("center(Tensor x, Tensor mean, int[] padding) -> Tensor")
_library.define("uncenter(Tensor y, Tensor offset) -> Tensor")


def center(x: Tensor, mean: Tensor, padding: Sequence[int] = ()) -> Tensor:
    """``x``, padded with zeros as by ``torch.nn.functional.pad``, minus ``mean``.

    Padding comes first, because the padding of the original is zero, not the mean.
    """
    return (F.pad(x, list(padding)) if padding else x) - mean


def uncenter(y: Tensor, offset: Tensor) -> Tensor:
    """``y`` + f(mean, w)."""
    return y + offset


_library.impl("center", center, "CompositeImplicitAutograd")
_library.impl("uncenter", uncenter, "CompositeImplicitAutograd")
