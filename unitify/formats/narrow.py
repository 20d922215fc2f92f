"""``unitify::narrow``: a tensor in a narrower type and back, where a compiler may not leave it out.

A compiler that fuses kernels computes what is narrow in float32, and takes a conversion there and
back for one that changes nothing. Here it is what changes the numbers. So a graph holds it as one
operator, and Inductor is told to convert: at full speed, within the kernels of its neighbors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

_library = library.Library("unitify", "FRAGMENT")
_library.define("narrow(Tensor x, ScalarType dtype) -> Tensor")

#: Types of tensors that hold data and are not being recorded.
_PLAIN = (Tensor, torch.nn.Parameter)


def there_and_back(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` converted to ``dtype``, and to its own type again."""
    return x.to(dtype).to(x.dtype)


_library.impl("narrow", there_and_back, "CompositeExplicitAutograd")
NARROW: Any = torch.ops.unitify.narrow.default


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``there_and_back``, also when it is recorded for a compiler."""
    if type(x) in _PLAIN:
        return there_and_back(x, dtype)
    result: Tensor = NARROW(x, dtype)
    return result


def lower_for_inductor() -> None:
    """Tell Inductor what ``NARROW`` is; it has to be loaded."""
    from torch._inductor import lowering
    from torch._inductor.virtualized import ops

    if NARROW in lowering.lowerings:
        return

    def lowered(x: Any, dtype: torch.dtype) -> Any:
        own = x.get_dtype()

        def converted(element: Any) -> Any:
            # Not in a type that is as good for computing: in this one.
            there = ops.to_dtype(element, dtype, src_dtype=own, use_compute_types=False)
            return ops.to_dtype(there, own, src_dtype=dtype, use_compute_types=False)

        return lowering.make_pointwise(converted, override_return_dtype=own)(x)

    lowering.register_lowering(NARROW, type_promotion_kind=None)(lowered)
