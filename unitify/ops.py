"""The operations that a transformed graph holds beside the model's own.

``unitify::rescale`` is registered with ``torch.library``: it survives export, Dynamo and AOT
autograd with both of its factors, and Inductor fuses it through a decomposition.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

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
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.unitify.rescale.default(x, forward, backward)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        # The backward of the backward multiplies by the forward factor again.
        result = torch.ops.unitify.rescale.default(
            gradient, ctx.backward_factor, ctx.forward_factor
        )
        return result, None, None


def _rescale_autograd(x: Tensor, forward: float, backward: float) -> Tensor:
    result: Tensor = _Rescale.apply(x, forward, backward)
    return result


_library.impl("rescale", _rescale_kernel, "CompositeExplicitAutograd")
_library.impl("rescale", _rescale_autograd, "Autograd")


def rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    """``x · forward``, whose incoming gradient is multiplied by ``backward`` instead."""
    result: Tensor = torch.ops.unitify.rescale.default(x, forward, backward)
    return result


def _decomposed_rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    return torch.mul(x, forward)


def register_decompositions() -> None:
    """Let Inductor fuse ``rescale`` into its neighbours; done once Inductor is loaded."""
    from torch._inductor.decomposition import decompositions

    decompositions.setdefault(torch.ops.unitify.rescale.default, _decomposed_rescale)


if "torch._inductor" in sys.modules:
    register_decompositions()
