"""The operations that a transformed graph holds beside the model's own.

``unitify::rescale`` is registered with ``torch.library``: it survives export, Dynamo and AOT
autograd with both of its factors, and Inductor fuses it through a decomposition.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from unitify.formats import FORMATS, quantise
from unitify.layout import scaled

_library = torch.library.Library("unitify", "DEF")
_library.define("rescale(Tensor x, float forward, float backward) -> Tensor")


def _rescale_kernel(x: Tensor, forward: float, backward: float) -> Tensor:
    if isinstance(x, FakeTensor):
        register_decompositions()
    return scaled(x, forward)


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.forward_factor, ctx.backward_factor = forward, backward
        # No gradient stays no gradient: an optimiser tells it from zero.
        ctx.set_materialize_grads(False)
        if type(x) in _PLAIN:
            # No one records this call, so it need not go through the dispatcher again.
            return x.view_as(x) if forward == 1.0 else scaled(x, forward)
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = torch.ops.unitify.rescale.default(x, forward, backward)
        return result

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        # A gradient of a gradient is in the units of a value again: it takes the forward factor.
        result = torch.ops.unitify.rescale.default(
            gradient, ctx.backward_factor, ctx.forward_factor
        )
        return result, None, None


_PLAIN = (Tensor, torch.nn.Parameter)


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
    """Let Inductor fuse ``rescale`` into its neighbours, if Inductor is loaded.

    It need not be when this module is imported. Every compilation first runs a graph on tensors
    without data, so the kernel of ``rescale`` calls this in time.
    """
    inductor = sys.modules.get("torch._inductor.decomposition")
    if inductor is None and "torch._inductor" in sys.modules:
        inductor = importlib.import_module("torch._inductor.decomposition")
    if inductor is None or torch.ops.unitify.rescale.default in inductor.decompositions:
        return
    inductor.decompositions[torch.ops.unitify.rescale.default] = _decomposed_rescale
    inductor.decompositions[torch.ops.unitify.cast.default] = _cast_kernel
    # Inductor keeps a copy of the table once something else has been compiled.
    inductor.fast_random_decomps.cache_clear()


register_decompositions()
