"""The operations that a transformed graph holds beside the model's own.

``unitify::rescale`` is registered with ``torch.library``: it survives export, Dynamo and AOT
autograd with both of its factors, and Inductor fuses it through a decomposition.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from unitify.formats import FORMATS, quantise

_library = torch.library.Library("unitify", "DEF")
_library.define("rescale(Tensor x, float forward, float backward) -> Tensor")


def scaled(x: Tensor, factor: float) -> Tensor:
    """``x · factor`` in the strides of ``x``.

    A kernel may round differently for another memory layout, so a rescaled operand keeps the
    one that the original operation saw: expanded dimensions stay expanded, gaps stay gaps.
    """
    if factor == 1.0:
        return x.view_as(x)
    if torch._prims_common.is_non_overlapping_and_dense_or_false(x):
        return torch.mul(x, factor)
    sizes, strides = x.size(), x.stride()
    compact = x
    for dimension, stride in enumerate(strides):
        if stride == 0 and sizes[dimension] > 1:
            compact = compact.narrow(dimension, 0, 1)
    if torch._prims_common.is_non_overlapping_and_dense_or_false(compact):
        return torch.mul(compact, factor).expand(sizes)
    if _overlaps(compact):
        return torch.mul(x, factor)
    result = torch.empty_strided(
        compact.size(), compact.stride(), dtype=x.dtype, device=x.device, layout=x.layout
    )
    torch.mul(compact, factor, out=result)
    return result.expand(sizes)


def _overlaps(x: Tensor) -> bool:
    extent = 1
    for stride, size in sorted(zip(x.stride(), x.size(), strict=True)):
        if size > 1:
            if stride < extent:
                return True
            extent = stride * (size - 1) + extent
    return False


def _rescale_kernel(x: Tensor, forward: float, backward: float) -> Tensor:
    return scaled(x, forward)


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.forward_factor, ctx.backward_factor = forward, backward
        # No gradient stays no gradient: an optimiser tells it from zero.
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.unitify.rescale.default(x, forward, backward)
        return result

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        # The backward of the backward multiplies by the forward factor again.
        result = torch.ops.unitify.rescale.default(
            gradient, ctx.backward_factor, ctx.forward_factor
        )
        return result, None, None


def _rescale_autograd(x: Tensor, forward: float, backward: float) -> Tensor:
    result: Tensor = _Rescale.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return result


_library.impl("rescale", _rescale_kernel, "CompositeExplicitAutograd")
_library.impl("rescale", _rescale_autograd, "Autograd")


def rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    """``x · forward``, whose incoming gradient is multiplied by ``backward`` instead."""
    result: Tensor = torch.ops.unitify.rescale.default(x, forward, backward)
    return result


_library.define("cast(Tensor x, str forward, str backward) -> Tensor")


def _cast_kernel(x: Tensor, forward: str, backward: str) -> Tensor:
    return quantise(x, FORMATS[forward]) if forward else x.clone()


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: str, backward: str) -> Tensor:
        ctx.backward_format = backward
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.unitify.cast.default(x, forward, backward)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        if not ctx.backward_format:
            return gradient, None, None
        return torch.ops.unitify.cast.default(gradient, ctx.backward_format, ""), None, None


def _cast_autograd(x: Tensor, forward: str, backward: str) -> Tensor:
    result: Tensor = _Cast.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return result


_library.impl("cast", _cast_kernel, "CompositeExplicitAutograd")
_library.impl("cast", _cast_autograd, "Autograd")


def cast(x: Tensor, forward: str, backward: str) -> Tensor:
    """``x`` rounded to the format named ``forward``, its gradient to ``backward`` ("" for none).

    The gradient passes the rounding unchanged (straight through).
    """
    result: Tensor = torch.ops.unitify.cast.default(x, forward, backward)
    return result


def _decomposed_rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    return torch.mul(x, forward)


def register_decompositions() -> None:
    """Let Inductor fuse ``rescale`` into its neighbours; done once Inductor is loaded."""
    from torch._inductor.decomposition import decompositions

    decompositions.setdefault(torch.ops.unitify.rescale.default, _decomposed_rescale)
    decompositions.setdefault(torch.ops.unitify.cast.default, _cast_kernel)


if "torch._inductor" in sys.modules:
    register_decompositions()
