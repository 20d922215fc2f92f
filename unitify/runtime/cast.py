"""``unitify::cast``: rounds a tensor to a format, in its own type, and its gradient to another.

The gradient passes the rounding of the value unchanged (straight through), and may be rounded to a
format of its own. ``unitify::cast.watched`` also returns a token, whose gradient is a power of two:
the gradient of the value is multiplied by it before it is rounded, and divided after.
``runtime.arrive`` sends that power.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitify.formats.rounding import octave
from unitify.formats.table import FORMATS, BlockFormat, Format, quantize
from unitify.runtime.onnx import is_for_onnx, quantized_linearly
from unitify.runtime.registered import at_one_level, below, by_element, is_plain, register

_ARGUMENTS = (
    "Tensor x, str forward, str backward, int forward_exponent=0, int backward_exponent=0, "
    "bool amax=False, bool saturate=True, int axis=-1"
)


@dataclass(frozen=True)
class Rounding:
    """How one direction of a cast rounds x: to 2^exponent · round(x / 2^exponent).

    With ``amax`` the exponent is found at run time, so that the largest element is in the highest
    octave of the format. ``saturate`` and ``axis``: those of ``quantize``.
    """

    format: Format
    exponent: int = 0
    amax: bool = False
    saturate: bool = True
    axis: int = -1

    def __call__(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """``x`` rounded, in its own type. ``factor``: a power of two that multiplies ``x`` before
        the rounding, and divides it after."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        by = self.factor(wide, factor)
        how = self.format, self.saturate, self.axis
        if isinstance(by, float) and by == 1.0:
            return quantize(wide, *how).to(x.dtype)
        return (quantize(wide * by, *how) / by).to(x.dtype)

    def factor(self, x: Tensor, factor: Tensor | None = None) -> Tensor | float:
        """The factor of ``x`` before it is rounded."""
        if self.amax:
            return amax_factor(x, self.format)
        return 2.0**-self.exponent if factor is None else factor * 2.0**-self.exponent

    def in_onnx(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        """The call in operators of ONNX."""
        scale = 1 / self.factor(x, factor)
        return quantized_linearly(x, self.format, scale, self.saturate)


def amax_factor(x: Tensor, format: Format) -> Tensor:
    """2^floor(log2(largest / max|x|)), 0-d: FP8-AMAX of Perez et al. 2023 (arXiv 2309.17224).

    One for a tensor that is empty, all zero, or not finite.
    """
    if x.numel() == 0:
        return x.new_ones(())
    room = format.largest / x.detach().abs().max()
    usable = room.isfinite() & (room > 0)
    return torch.where(usable, octave(room, -100).clamp_max(2.0**100), 1.0)


def token_of(x: Tensor) -> Tensor:
    """A token for a cast of ``x``: a zero, 0-d."""
    return x.new_zeros((), dtype=torch.float32)


class _Cast(torch.autograd.Function):
    """A cast by ``given``. Its gradient is rounded, and its tangent passes unchanged."""

    @staticmethod
    def forward(ctx: Any, operator: Any, x: Tensor, *given: Any) -> Any:
        forward, backward, _, exponent, amax, saturate, axis = given[:7]
        ctx.backward_cast = (backward, "", exponent, 0, amax, saturate, axis)
        ctx.is_watched = operator is _WATCHED
        ctx.set_materialize_grads(False)
        if not forward and is_plain(x):
            return (x.detach(), token_of(x)) if ctx.is_watched else x.detach()
        return below(operator, x, *given)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor | None, factor: Tensor | None = None
    ) -> tuple[Any, ...]:
        if gradient is not None and ctx.backward_cast[0]:
            gradient = _CAST(gradient, *ctx.backward_cast, factor)
        return None, gradient, *(None,) * (7 if ctx.is_watched else 8)

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor | None, *rest: Any) -> Any:  # type: ignore[override]
        if tangent is None:
            return None
        # A copy, because torch writes into the result.
        return (tangent.clone(), token_of(tangent)) if ctx.is_watched else tangent.clone()


_apply = at_one_level(_Cast)


def _filled(*given: Any) -> tuple[Any, ...]:
    """The arguments after x. torch omits those at the end that have their defaults."""
    return given + (0, 0, False, True, -1, None)[len(given) - 2 :]


def _cast(x: Tensor, *given: Any) -> Tensor:
    result: Tensor = _apply(_CAST, x, *_filled(*given))
    return result


def _rounding(*given: Any) -> tuple[Rounding, Tensor | None]:
    """How ``cast`` rounds in the forward pass, and by which factor."""
    forward, _, exponent, _, amax, saturate, axis, factor = _filled(*given)
    return Rounding(FORMATS[forward], exponent, amax, saturate, axis), factor


def _kernel(x: Tensor, forward: str, *given: Any) -> Tensor:
    if not forward:
        return x.clone()
    rounding, factor = _rounding(forward, *given)
    return rounding(x, factor)


def _composed(x: Tensor, forward: str, *given: Any) -> Tensor:
    """The cast in operators of torch, or in those of ONNX during such an export."""
    if not forward:
        return x
    rounding, factor = _rounding(forward, *given)
    how = rounding.in_onnx if is_for_onnx(rounding.format.dtype) else rounding
    return how(x, factor)


def _batched(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, *given: Any
) -> tuple[Tensor, int | None]:
    *given, factor = _filled(*given)  # type: ignore[assignment]
    amax = given[4]
    if amax:
        # A factor for each tensor of the batch, from its own largest element.
        made = [_CAST(one, *given) for one in x.unbind(in_dims[0])]
        return torch.stack(made), 0
    # The batch dimension first, because ``axis`` counts from the end.
    x = x.unsqueeze(0) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    if factor is None or in_dims[8] is None:
        return _CAST(x, *given, factor), 0
    return _CAST(x, *given, factor.reshape(-1, *(1,) * (x.dim() - 1))), 0


def _sharded(results: int) -> Any:
    def sharded(x: Any, *given: Any) -> Any:
        factor = "whole" if len(given) > 7 and given[7] is not None else None
        found = by_element(*[None] * 7, factor, results=results)(x)
        # One process does not know the largest element of the whole, or of a divided block.
        is_amax = len(given) > 4 and given[4]
        in_blocks = any(isinstance(FORMATS.get(name), BlockFormat) for name in given[:2])
        return found[:1] if is_amax or in_blocks else found

    return sharded


_CAST = register(
    f"cast({_ARGUMENTS}, Tensor? factor=None) -> Tensor",
    kernel=_kernel,
    derivative=_cast,
    batched=_batched,
    sharded=_sharded(1),
    decomposition=_composed,
)


def _watched(x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = _apply(_WATCHED, x, *_filled(*given)[:-1])
    return result


def _watched_kernel(x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    return _kernel(x, *given), token_of(x)


def _watched_batched(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, *given: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int | None, None]]:
    return _WATCHED(x.movedim(in_dims[0], 0), *given), (0, None)


_WATCHED = register(
    f"cast.watched({_ARGUMENTS}) -> (Tensor, Tensor)",
    kernel=_watched_kernel,
    derivative=_watched,
    batched=_watched_batched,
    sharded=_sharded(2),
    decomposition=lambda x, *given: (_composed(x, *given), token_of(x)),
)


def cast(
    x: Tensor,
    forward: str,
    backward: str,
    forward_exponent: int = 0,
    backward_exponent: int = 0,
    amax: bool = False,
    saturate: bool = True,
    axis: int = -1,
    factor: Tensor | None = None,
) -> Tensor:
    """``x`` rounded to the format named ``forward``, its gradient to ``backward`` ("" for none).

    The exponents (log2), ``amax``, ``saturate`` and ``axis`` (negative) are those of ``Rounding``
    in each direction; ``factor`` is that of the forward direction.
    """
    given = (forward, backward, forward_exponent, backward_exponent, amax, saturate, axis, factor)
    result: Tensor = _CAST(x, *given)
    return result


def watched_cast(x: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    """``cast(x, *given)``, and a token whose gradient is a factor for that of the result."""
    result: tuple[Tensor, Tensor] = _WATCHED(x, *given)
    return result
