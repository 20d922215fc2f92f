"""``unitify::rescale``: a tensor times a number, and its gradient times another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unitify.runtime.layout import scaled
from unitify.runtime.registered import at_one_level, below, by_element, is_plain, register


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.factors = forward, backward
        # A missing gradient stays None, because optimizers treat zeros differently.
        ctx.set_materialize_grads(False)
        if is_plain(x):
            # The same memory, but not a view: views that a Function returns cannot be written.
            return x.detach() if forward == 1.0 else scaled(x, forward)
        result: Tensor = below(_OPERATOR, x, forward, backward)
        return result

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        forward, backward = ctx.factors
        # The gradient of a gradient has the units of a value, so its factor is the forward one.
        return _OPERATOR(gradient, backward, forward), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> Tensor | None:  # type: ignore[override]
        # A tangent has the units of its value, and their gradients have the same units, too.
        return None if tangent is None else _OPERATOR(tangent, *ctx.factors)


def _batched(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, forward: float, backward: float
) -> tuple[Tensor, int | None]:
    return _OPERATOR(x, forward, backward), in_dims[0]


def _multiplied(x: Tensor, forward: float, backward: float) -> Tensor:
    return torch.mul(x, forward)


_OPERATOR = register(
    "rescale(Tensor x, float forward, float backward) -> Tensor",
    kernel=lambda x, forward, backward: scaled(x, forward),
    derivative=at_one_level(_Rescale),
    batched=_batched,
    decomposition=_multiplied,
    # Partial sums may be added after the multiplication.
    sharded=lambda x, *_: [*by_element(None, None)(x), (["partial"], ["partial", None, None])],
)


def rescale(x: Tensor, forward: float, backward: float) -> Tensor:
    """``x · forward``; its gradient is multiplied by ``backward`` instead."""
    result: Tensor = _OPERATOR(x, forward, backward)
    return result
