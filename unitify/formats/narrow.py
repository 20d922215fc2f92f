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


def widened(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that ``codes`` of a narrow type stand for, in ``dtype``.

    The CPU converts E4M3 to wider types one by one. Its bits, moved to where FP16 has them, are
    those of the number times 2^-8: that takes a fifth of the time (1M elements: 5.0 and 1.0 ms).
    """
    is_slow = codes.dtype == torch.float8_e4m3fn and codes.device.type == "cpu"
    if not is_slow or type(codes) not in _PLAIN or torch._C._are_functorch_transforms_active():
        return codes.to(dtype)
    bits = codes.detach().view(torch.int8).to(torch.int16)
    # The sign is bit 15, and has been copied to bit 14, which the exponent does not reach.
    halves = bits.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)
    numbers = halves.to(torch.float32).mul_(2.0**8)
    # 480 is what the code of NaN reads as: times this it is infinite, and 448 is not.
    past = numbers * 2.0**119.15
    return numbers.sub_(past.sub_(past)).to(dtype)


def there_and_back(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` converted to ``dtype``, and to its own type again."""
    return widened(x.to(dtype), x.dtype)


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
