"""``unitify::fp8_linear``: a linear layer whose three matmuls have FP8 operands.

    output           x · wᵀ + bias        forward format × forward format
    gradient of x    g · w                backward format × forward format
    gradient of w    gᵀ · x               backward format × forward format

g is the gradient of the output, rounded once. Codes of x are kept for the backward pass, in a
quarter of the memory of float32. Codes of a weight are made again there: as in torch's own layers,
the backward pass refers to the parameter. ``unitify::fp8_linear.watched`` also returns a token,
like ``cast.watched``.

The operator replaces casts around a matmul. Transforms of ``torch.func``, forward-mode
differentiation, distributed tensors and second derivatives run these casts and that matmul: the
same numbers, multiplied in the model's own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from unitify.formats.table import FORMATS
from unitify.runtime.cast import cast, token_of, watched_cast
from unitify.runtime.onnx import is_for_onnx
from unitify.runtime.registered import (
    at_one_level,
    below,
    is_batch_of_gradients,
    is_plain,
    is_spread,
    is_transformed,
    register,
)
from unitify.runtime.scaled_mm import DECODE, decode, encode, is_fast, matmul
from unitify.runtime.shared_codes import shared_codes

_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, str forward, str backward, "
    "int x_exponent=0, int weight_exponent=0, int gradient_exponent=0"
)


class Exponents(NamedTuple):
    """log2 of what x, the weight and the gradient are divided by before they are rounded."""

    x: int = 0
    weight: int = 0
    gradient: int = 0


def _codes(x: Tensor, format: str, exponent: int) -> Tensor:
    """Codes of ``x``; codes are returned unchanged."""
    return x if x.dtype == FORMATS[format].dtype else encode(x, FORMATS[format], exponent)


def _is_parameter(weight: Tensor) -> bool:
    """Is it a leaf, or a view of one, which lives as long as the backward pass anyway?"""
    base = weight if weight._base is None else weight._base
    return is_plain(weight) and base.is_leaf


def _output(x: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor, exponent: int) -> Tensor:
    result = matmul(x, weight, like.dtype, exponent)
    if bias is not None:
        # Under autocast the bias is wider than the result.
        result = result + bias.to(result.dtype)
    shape = (*like.shape[:-1], weight.shape[0])
    return result.view(shape)


def _kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    forward: str,
    backward: str,
    *given: int,
) -> Tensor:
    exponents = Exponents(*given)
    left = shared_codes(x, forward, exponents.x)
    right = _codes(weight, forward, exponents.weight)
    return _output(left, right, bias, x, exponents.x + exponents.weight)


class _Ties(torch.autograd.Function):
    """Zeros in the shapes of x and the weight, with their derivatives, in no memory.

    Codes have no derivative. The sum of codes of x and its tie has that of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        of_x, of_weight = (t.new_zeros(()).expand(t.shape) for t in (x, weight))
        return of_x, of_weight

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


class _FP8Linear(torch.autograd.Function):
    """The output and its token."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        forward: str,
        backward: str,
        exponents: Exponents,
        ties: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            left = shared_codes(x, forward, exponents.x)
            right = _codes(weight, forward, exponents.weight)
            _, needs_x, needs_weight, *_ = ctx.needs_input_grad
            held = weight if _is_parameter(weight) else right
            ctx.save_for_backward(left if needs_weight else None, held if needs_x else None)
            ctx.ties = ties
            ctx.bias_type = bias.dtype if bias is not None else None
            ctx.formats, ctx.exponents = (forward, backward), exponents
            if is_plain(x):
                made = _output(left, right, bias, x, exponents.x + exponents.weight)
                return made, token_of(x)
        # A recorded graph has one operator, with its backward pass. It computes the codes a second
        # time; a compiler finds that they are the same.
        result = below(operator, x, weight, bias, forward, backward, *exponents)
        return result if operator is _WATCHED else (result, token_of(x))

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, gradient: Tensor | None, factor: Tensor | None
    ) -> tuple[Any, ...]:
        if gradient is None:
            return (None,) * 8
        is_wide = torch.is_grad_enabled() or is_batch_of_gradients(gradient)
        gradients = _wide_gradients if is_wide else _gradients
        return None, *gradients(ctx, gradient, factor), *(None,) * 4


def _gradients(ctx: Any, gradient: Tensor, factor: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, multiplied in FP8."""
    left, weight_or_codes = ctx.saved_tensors
    of_x, of_weight, of_gradient = ctx.exponents
    forward, format = ctx.formats[0], FORMATS[ctx.formats[1]]
    narrow = FORMATS[forward].dtype
    assert narrow is not None
    codes = encode(gradient.flatten(0, -2), format, of_gradient, factor)
    if not is_fast(codes.device, codes.dtype, narrow):
        # Once for all that it is multiplied with.
        codes = decode(codes, gradient.dtype)
    _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    tie_of_x, tie_of_weight = ctx.ties
    x = weight = bias = None
    if needs_x:
        right = _codes(weight_or_codes, forward, of_weight)
        x = matmul(codes, right.t(), tie_of_x.dtype, of_gradient + of_weight, factor)
        x = x.view(tie_of_x.shape)
    if needs_weight:
        weight = matmul(codes.t(), left.t(), tie_of_weight.dtype, of_gradient + of_x, factor)
    if needs_bias:
        bias = decode(codes, ctx.bias_type, of_gradient).sum(0)
        bias = bias if factor is None else bias / factor
    return x, weight, bias


def _wide_gradients(ctx: Any, gradient: Tensor, factor: Tensor | None) -> tuple[Tensor | None, ...]:
    """The same gradients by differentiable operations, for second derivatives."""
    left, weight_or_codes = ctx.saved_tensors
    tie_of_x, tie_of_weight = ctx.ties
    of_x, of_weight, of_gradient = ctx.exponents
    forward, backward = ctx.formats
    rounding = (backward, "", of_gradient, 0, False, True)
    # Batches of gradients have no ``flatten``.
    rows = gradient.reshape(math.prod(tie_of_x.shape[:-1]), gradient.shape[-1])
    rounded = cast(rows, *rounding, factor=factor)
    _, needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    x = weight = None
    if needs_x:
        right = decode(
            _codes(weight_or_codes.detach(), forward, of_weight), tie_of_x.dtype, of_weight
        )
        x = (rounded @ (right + tie_of_weight)).view(tie_of_x.shape)
    if needs_weight:
        weight = rounded.t() @ (decode(left, tie_of_x.dtype, of_x) + tie_of_x.flatten(0, -2))
    return x, weight, rounded.sum(0) if needs_bias else None


_apply = at_one_level(_FP8Linear)


def _derivative(is_watched: bool) -> Callable[..., Any]:
    """The differentiable operator: itself, or the casts and the matmul that it replaces."""

    def derivative(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        forward: str,
        backward: str,
        *given: int,
    ) -> Any:
        exponents = Exponents(*given)
        if is_transformed() or forward_ad._current_level >= 0 or is_spread(x) or is_spread(weight):
            made = _matmul_of_casts(x, weight, bias, forward, exponents)
            how = watched_cast if is_watched else cast
            return how(made, "", backward, 0, exponents.gradient)
        operator = _WATCHED if is_watched else _OPERATOR
        ties = _Ties.apply(x, weight)  # type: ignore[no-untyped-call]
        y, token = _apply(operator, x, weight, bias, forward, backward, exponents, ties)
        return (y, token) if is_watched else y

    return derivative


def _matmul_of_casts(
    x: Tensor, weight: Tensor, bias: Tensor | None, forward: str, exponents: Exponents
) -> Tensor:
    if weight.dtype == FORMATS[forward].dtype:
        weight = DECODE(weight, x.dtype, exponents.weight)
    else:
        weight = cast(weight, forward, "", exponents.weight)
    return F.linear(cast(x, forward, "", exponents.x), weight, bias)


def _composed(x: Tensor, weight: Tensor, bias: Tensor | None, forward: str, *given: Any) -> Tensor:
    # ONNX has no matmul of codes.
    if is_for_onnx(FORMATS[forward].dtype):
        return _matmul_of_casts(x, weight, bias, forward, Exponents(*given[1:]))
    return _kernel(x, weight, bias, forward, *given)


_OPERATOR = register(
    f"fp8_linear({_ARGUMENTS}) -> Tensor",
    kernel=_kernel,
    derivative=_derivative(False),
    decomposition=_composed,
)
_WATCHED = register(
    f"fp8_linear.watched({_ARGUMENTS}) -> (Tensor, Tensor)",
    kernel=lambda x, *given: (_kernel(x, *given), token_of(x)),
    derivative=_derivative(True),
    decomposition=lambda x, *given: (_composed(x, *given), token_of(x)),
)
