"""``unitify::cast``: a tensor rounded to a format and held in its own type, and so its gradient.

The gradient passes the rounding of the value unchanged (straight through) and may be rounded to a
format of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensor

from unitify.formats.table import FORMATS, Format, quantise
from unitify.ops.rescale import DECOMPOSITIONS, PLAIN, register_decompositions

_library = library.Library("unitify", "FRAGMENT")
_library.define(
    "cast(Tensor x, str forward, str backward, int forward_exponent=0, int backward_exponent=0, "
    "bool amax=False, bool saturate=True) -> Tensor"
)


@dataclass(frozen=True)
class Rounding:
    """How one direction of a cast rounds x: to 2^exponent · round(x / 2^exponent).

    With ``amax`` the exponent is found at run time instead: the largest element is then in the
    upper half of the format's range. ``saturate`` as for ``quantise``.
    """

    format: Format
    exponent: int = 0
    amax: bool = False
    saturate: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded, in its own type."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.amax:
            found = amax_factor(wide, self.format)
            rounded = quantise(wide * found, self.format, self.saturate) / found
        elif self.exponent:
            factor = 2.0**self.exponent
            rounded = quantise(wide / factor, self.format, self.saturate) * factor
        else:
            rounded = quantise(wide, self.format, self.saturate)
        return rounded.to(x.dtype)


def amax_factor(x: Tensor, format: Format) -> Tensor:
    """2^floor(log2(largest / max|x|)), 0-d: FP8-AMAX of Perez et al. 2023 (arXiv 2309.17224).

    One for a tensor that is empty, all zero, or holds something that is not finite.
    """
    if x.numel() == 0:
        return x.new_ones(())
    room = format.largest / x.detach().abs().amax()
    # The exponent of frexp is one more than floor(log2): its mantissa lies in [1/2, 1).
    factor = torch.exp2(torch.frexp(room).exponent.to(room.dtype) - 1)
    usable = room.isfinite() & (room > 0)
    return torch.where(usable, factor.clamp(2.0**-100, 2.0**100), 1.0)


def _cast_kernel(
    x: Tensor,
    forward: str,
    backward: str,
    forward_exponent: int = 0,
    backward_exponent: int = 0,
    amax: bool = False,
    saturate: bool = True,
) -> Tensor:
    if isinstance(x, FakeTensor):
        register_decompositions()
    if not forward:
        return x.clone()
    return Rounding(FORMATS[forward], forward_exponent, amax, saturate)(x)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        forward: str,
        backward: str,
        forward_exponent: int,
        backward_exponent: int,
        amax: bool,
        saturate: bool,
    ) -> Tensor:
        ctx.backward_cast = (backward, "", backward_exponent, 0, amax, saturate)
        ctx.set_materialize_grads(False)
        if not forward and type(x) in PLAIN:
            return x.view_as(x)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.unitify.cast.default(
                x, forward, backward, forward_exponent, backward_exponent, amax, saturate
            )
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if gradient is not None and ctx.backward_cast[0]:
            gradient = torch.ops.unitify.cast.default(gradient, *ctx.backward_cast)
        return gradient, None, None, None, None, None, None


def _cast_autograd(
    x: Tensor,
    forward: str,
    backward: str,
    forward_exponent: int = 0,
    backward_exponent: int = 0,
    amax: bool = False,
    saturate: bool = True,
) -> Tensor:
    result: Tensor = _Cast.apply(  # type: ignore[no-untyped-call]
        x, forward, backward, forward_exponent, backward_exponent, amax, saturate
    )
    return result


_library.impl("cast", _cast_kernel, "CompositeExplicitAutograd")
_library.impl("cast", _cast_autograd, "Autograd")
DECOMPOSITIONS[torch.ops.unitify.cast.default] = _cast_kernel


def cast(
    x: Tensor,
    forward: str,
    backward: str,
    forward_exponent: int = 0,
    backward_exponent: int = 0,
    amax: bool = False,
    saturate: bool = True,
) -> Tensor:
    """``x`` rounded to the format named ``forward``, its gradient to ``backward`` ("" for none).

    The exponents, ``amax`` and ``saturate`` are those of ``Rounding``, for each direction.
    """
    result: Tensor = torch.ops.unitify.cast.default(
        x, forward, backward, forward_exponent, backward_exponent, amax, saturate
    )
    return result
