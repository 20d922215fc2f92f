"""``unitify::arrive`` and ``unitify::join``: the size of the gradients that arrive at outputs.

A plan scales each gradient before it is rounded, for an assumed size of the gradients at the
outputs. The backward pass is linear in these: a mean over more tokens, or a loss scaler, multiplies
all gradients by one factor. So each output passes through ``arrive``. Its backward pass measures
the gradient that arrives, and sends its size to the casts before this output, as the gradient of
their tokens. Autograd adds these sizes. ``join`` makes one factor of them for all casts before the
same outputs: a power of two, in a tensor, without synchronization. Only the rounding depends on the
factor, so gradients are true at any factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from unitify.runtime.cast import token_of
from unitify.runtime.registered import at_one_level, below, by_element, is_plain, register


def size_of(gradient: Tensor, unit: float) -> Tensor:
    """The power of two, 0-d, nearest to the size of ``gradient`` / ``unit``; 0 where that is zero.

    The size is √(mean · largest) of magnitudes. It is at least the RMS, and equals it where all are
    alike. It needs no squares, which overflow and underflow at half of the range. It is not finite
    where an element is not.
    """
    mean, largest = _norm(gradient, 1.0) / gradient.numel(), _norm(gradient, torch.inf)
    (low, a), (high, b) = torch.frexp(mean), torch.frexp(largest)
    # Whole octaves are separate, so that 2^k times a gradient has exactly 2^k times the size.
    octaves = a + b
    half = torch.div(octaves, 2, rounding_mode="floor")
    rest = ((octaves - 2 * half) + torch.log2(low * high)) / 2
    size = torch.exp2(half + rest.round()) / unit
    usable = mean.isfinite() & largest.isfinite() & (mean > 0)
    return torch.where(usable, size, mean * largest)


def factor_of(size: Tensor) -> Tensor:
    """The power of two that brings a size to one, within an octave; one for 0, infinity and NaN."""
    octave = torch.frexp(size).exponent - 1
    factor = torch.exp2(-octave.to(torch.float32)).clamp(2.0**-100, 2.0**100)
    return torch.where(size.isfinite() & (size > 0), factor, 1.0)


def _norm(x: Tensor, order: float) -> Tensor:
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    norm: Tensor = torch.linalg.vector_norm(x, order, dtype=wide)
    return norm.to(torch.float32)


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unit: float, x: Tensor, *tokens: Tensor) -> Tensor:
        ctx.unit, ctx.tokens = unit, len(tokens)
        # A missing gradient stays None, so that its size is not counted.
        ctx.set_materialize_grads(False)
        made = x.detach() if is_plain(x) else below(_ARRIVE, x, list(tokens), unit)
        if forward_ad._current_level >= 0:
            ctx.kind = x.detach()
        elif not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(made)
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        size = None
        if gradient is not None and gradient.numel():
            # The size is a constant in second derivatives.
            with torch.no_grad():
                size = size_of(gradient, ctx.unit)
        return None, gradient, *(size,) * ctx.tokens

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor | None, *__: Any) -> Tensor:  # type: ignore[override]
        # A copy, because torch writes into the result.
        return torch.zeros_like(ctx.kind) if tangent is None else tangent.clone()


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tokens: Tensor) -> Tensor:
        ctx.tokens = len(tokens)
        ctx.set_materialize_grads(False)
        if is_plain(tokens[0]):
            return token_of(tokens[0])
        joined: Tensor = below(_JOIN, list(tokens))
        return joined

    @staticmethod
    def backward(ctx: Any, size: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        factor = None if size is None else factor_of(size)
        return tuple(factor for _ in range(ctx.tokens))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # type: ignore[override]
        return token_of(next(t for t in tangents if t is not None))


_arrive, _join = at_one_level(_Arrive), at_one_level(_Join)


def _batched_arrive(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, tokens: Sequence[Tensor], unit: float
) -> tuple[Tensor, int | None]:
    return _ARRIVE(x, tokens, unit), in_dims[0]


_ARRIVE: Any = register(
    "arrive(Tensor x, Tensor[] tokens, float unit) -> Tensor",
    kernel=lambda x, tokens, unit: x.clone(),
    derivative=lambda x, tokens, unit: _arrive(unit, x, *tokens),
    batched=_batched_arrive,
    # In a compiled graph nothing writes into the result, so it needs no copy.
    decomposition=lambda x, tokens, unit: x,
    sharded=lambda x, tokens, unit: by_element(*["whole"] * len(tokens), None)(x),
)
_JOIN: Any = register(
    "join(Tensor[] tokens) -> Tensor",
    kernel=lambda tokens: token_of(tokens[0]),
    derivative=lambda tokens: _join(*tokens),
    batched=lambda info, in_dims, tokens: (_JOIN(tokens), None),
    sharded=lambda tokens: [(["whole"], ["whole"] * len(tokens))],
)
