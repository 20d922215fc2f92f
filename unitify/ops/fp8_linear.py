"""``unitify::fp8_linear``: a linear layer on FP8 operands, its three products in FP8.

    output           x · wᵀ + bias        forward format × forward format
    gradient of x    g · w                backward format × forward format
    gradient of w    gᵀ · x               backward format × forward format

with g, the gradient of the output, rounded once. What is kept for the backward pass are codes: a
quarter of the memory that float32 takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensor

from unitify.formats.table import FORMATS
from unitify.ops.rescale import DECOMPOSITIONS, PLAIN, register_decompositions
from unitify.ops.scaled_mm import decode, encode, product

_library = library.Library("unitify", "FRAGMENT")
_library.define(
    "fp8_linear(Tensor x, Tensor weight, Tensor? bias, str forward, str backward, "
    "int[3] exponents) -> Tensor"
)


def _codes(x: Tensor, format: str, exponent: int) -> Tensor:
    """Codes of ``x``; codes stay what they are."""
    return x if x.dtype == FORMATS[format].dtype else encode(x, FORMATS[format], exponent)


def _output(x: Tensor, weight: Tensor, bias: Tensor | None, like: Tensor, exponent: int) -> Tensor:
    result = product(x, weight, like.dtype, exponent)
    if bias is not None:
        result = result + bias
    shape = (*like.shape[:-1], weight.shape[0])
    return result.view(shape)


def _fp8_linear_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    forward: str,
    backward: str,
    exponents: Sequence[int],
) -> Tensor:
    if isinstance(x, FakeTensor):
        register_decompositions()
    left = _codes(x.flatten(0, -2), forward, exponents[0])
    right = _codes(weight, forward, exponents[1])
    return _output(left, right, bias, x, exponents[0] + exponents[1])


class _FP8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        forward: str,
        backward: str,
        exponents: Sequence[int],
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            left = _codes(x.flatten(0, -2), forward, exponents[0])
            right = _codes(weight, forward, exponents[1])
            ctx.save_for_backward(left, right)
            ctx.shape, ctx.dtypes = (
                x.shape,
                (x.dtype, weight.dtype, bias.dtype if bias is not None else None),
            )
            ctx.backward_format, ctx.exponents = backward, exponents
            if type(x) in PLAIN:
                return _output(left, right, bias, x, exponents[0] + exponents[1])
            # While a graph is recorded it stays one operator, which brings its backward pass along.
            # Codes are written down a second time; a compiler sees that they are the same.
            result: Tensor = torch.ops.unitify.fp8_linear.default(
                x, weight, bias, forward, backward, exponents
            )
            return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if gradient is None:
            return None, None, None, None, None, None
        left, right = ctx.saved_tensors
        of_x, of_weight, of_gradient = ctx.exponents
        codes = encode(gradient.flatten(0, -2), FORMATS[ctx.backward_format], of_gradient)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        x_type, weight_type, bias_type = ctx.dtypes
        return (
            product(codes, right.t(), x_type, of_gradient + of_weight).view(ctx.shape)
            if needs_x
            else None,
            product(codes.t(), left.t(), weight_type, of_gradient + of_x) if needs_weight else None,
            decode(codes, bias_type, of_gradient).sum(0) if needs_bias else None,
            None,
            None,
            None,
        )  # fmt: skip


def _fp8_linear_autograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    forward: str,
    backward: str,
    exponents: Sequence[int],
) -> Tensor:
    result: Tensor = _FP8Linear.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, forward, backward, exponents
    )
    return result


_library.impl("fp8_linear", _fp8_linear_kernel, "CompositeExplicitAutograd")
_library.impl("fp8_linear", _fp8_linear_autograd, "Autograd")
DECOMPOSITIONS[torch.ops.unitify.fp8_linear.default] = _fp8_linear_kernel


def fp8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    forward: str,
    backward: str,
    exponents: Sequence[int] = (0, 0, 0),
) -> Tensor:
    """``x`` [.., K] · ``weight`` [N, K]ᵀ + ``bias`` [N], rounded as two casts before it would.

    ``weight`` may hold codes already. ``exponents``: of x, weight and gradient, as for
    ``cast_operator.Rounding``. Not differentiable twice.
    """
    result: Tensor = torch.ops.unitify.fp8_linear.default(
        x, weight, bias, forward, backward, exponents
    )
    return result
