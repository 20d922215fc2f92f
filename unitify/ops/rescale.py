"""``unitify::rescale``, and how Inductor learns of operators like it.

It is registered as an operator of torch: so it survives export, Dynamo and AOT autograd with
both of its factors, and Inductor fuses it through a decomposition.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensor

from unitify.ops.layout import scaled

_library = library.Library("unitify", "DEF")
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
        if type(x) in PLAIN:
            # No one records this call, so it need not go through the dispatcher again. The same
            # memory in a tensor that is no view: views that a Function returns cannot be written.
            return x.detach() if forward == 1.0 else scaled(x, forward)
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


#: Types of tensors that hold data and are not being recorded.
PLAIN = (Tensor, torch.nn.Parameter)


def _rescale_autograd(x: Tensor, forward: float, backward: float) -> Tensor:
    result: Tensor = _Rescale.apply(x, forward, backward)  # type: ignore[no-untyped-call]
    return result


_library.impl("rescale", _rescale_kernel, "CompositeExplicitAutograd")
_library.impl("rescale", _rescale_autograd, "Autograd")


def rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    """``x · forward``, whose incoming gradient is multiplied by ``backward`` instead."""
    result: Tensor = torch.ops.unitify.rescale.default(x, forward, backward)
    return result


def _decomposed_rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    return torch.mul(x, forward)


#: Our operators in terms of torch's own; each operator's module adds its row.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.unitify.rescale.default: _decomposed_rescale
}


def register_decompositions() -> None:
    """Let Inductor fuse ``DECOMPOSITIONS`` into their neighbours, if Inductor is loaded.

    It need not be when this module is imported. Every compilation first runs a graph on tensors
    without data, so the kernels of our operators call this in time.
    """
    inductor = sys.modules.get("torch._inductor.decomposition")
    if inductor is None and "torch._inductor" in sys.modules:
        inductor = importlib.import_module("torch._inductor.decomposition")
    if inductor is None or DECOMPOSITIONS.keys() <= inductor.decompositions.keys():
        return
    inductor.decompositions.update(DECOMPOSITIONS)
    # Inductor keeps a copy of the table once something else has been compiled.
    inductor.fast_random_decomps.cache_clear()


register_decompositions()
