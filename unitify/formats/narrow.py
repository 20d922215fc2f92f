"""``unitify::narrow``: conversion to a narrower type and back, which a compiler must not remove.

A compiler that fuses kernels computes narrow types in float32, and removes a conversion to one and
back. Here this conversion rounds. So a graph has it as one operator, which Inductor lowers to real
conversions, at full speed within fused kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library

_library = library.Library("unitify", "FRAGMENT")
_library.define("narrow(Tensor x, ScalarType dtype) -> Tensor")

#: Types of tensors with data; subclasses are used in recording.
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
    """``x`` converted to ``dtype``, and back to its own type."""
    return widened(x.to(dtype), x.dtype)


_library.impl("narrow", there_and_back, "CompositeExplicitAutograd")
NARROW: Any = torch.ops.unitify.narrow.default


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``there_and_back``, as one operator where a compiler records it."""
    if type(x) in _PLAIN:
        return there_and_back(x, dtype)
    result: Tensor = NARROW(x, dtype)
    return result


def lower_for_inductor() -> None:
    """Register the lowering of ``NARROW`` with Inductor, which must be loaded."""
    from torch._inductor import lowering
    from torch._inductor.virtualized import ops

    if NARROW in lowering.lowerings:
        return

    def lowered(x: Any, dtype: torch.dtype) -> Any:
        own = x.get_dtype()

        def converted(element: Any) -> Any:
            # In ``dtype`` itself, not in the wider type in which Inductor computes.
            there = ops.to_dtype(element, dtype, src_dtype=own, use_compute_types=False)
            return ops.to_dtype(there, own, src_dtype=dtype, use_compute_types=False)

        return lowering.make_pointwise(converted, override_return_dtype=own)(x)

    lowering.register_lowering(NARROW, type_promotion_kind=None)(lowered)
