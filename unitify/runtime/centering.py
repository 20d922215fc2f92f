"""``unitify::center``, ``unitify::uncenter``: a product on its operand's deviation from a mean.

    f(x, w)  =  f(x − mean, w)  +  f(mean, w)

The first term is rounded, the second is not: it is one row, whatever the batch. Any mean is right;
one near that of the operand leaves less to be rounded. Both operations are made of torch's own.
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
    """``y`` and what the product makes of the mean."""
    return y + offset


_library.impl("center", center, "CompositeImplicitAutograd")
_library.impl("uncenter", uncenter, "CompositeImplicitAutograd")
