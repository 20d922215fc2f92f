"""``unitify::center``, ``unitify::uncenter``: a contraction of the deviation from a mean.

    f(x, w)  =  f(x − mean, w)  +  f(mean, w)

The operands of the first term are rounded. The second term is not: it is one row, whatever the
batch. Any mean gives the right result; one near the operand's leaves less to round. Both operators
are made of torch's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, library

_library = library.Library("unitify", "FRAGMENT")
_library.define("center(Tensor x, Tensor mean, int[] padding) -> Tensor")
_library.define("uncenter(Tensor y, Tensor offset) -> Tensor")


def center(x: Tensor, mean: Tensor, padding: Sequence[int] = ()) -> Tensor:
    """``x``, padded with zeros as ``torch.nn.functional.pad`` does, less ``mean``.

    Padding comes first: a zero outside of an image is no more at the mean than one inside.
    """
    return (F.pad(x, list(padding)) if padding else x) - mean


def uncenter(y: Tensor, offset: Tensor) -> Tensor:
    """``y`` + f(mean, w)."""
    return y + offset


_library.impl("center", center, "CompositeImplicitAutograd")
_library.impl("uncenter", uncenter, "CompositeImplicitAutograd")
