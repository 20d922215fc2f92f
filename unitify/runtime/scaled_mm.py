"""Matmuls of FP8 matrices: encoding, multiplication, decoding.

Tensors in the model's own type are rounded to 8-bit codes once, and the codes are multiplied. The
scale of a matmul is a constant, so there is no amax reduction at run time. Where the device has no
FP8 matmul, or a slow one (a CPU), codes are decoded to the model's type and multiplied there: the
same terms, summed in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from unitify.formats.narrow import widened
from unitify.formats.table import Format
from unitify.runtime.onnx import dequantized_linearly, is_for_onnx
from unitify.runtime.registered import below, register

#: FP8 matmuls need sizes that are a multiple of this.
BLOCK = 16


def encode(x: Tensor, format: Format, exponent: int = 0, factor: Tensor | None = None) -> Tensor:
    """The codes of ``factor`` · ``x`` / 2^exponent, in the type of ``format``.

    It rounds like ``quantize``. ``factor``: a power of two, 0-d; None for one.
    """
    assert format.dtype is not None
    wide = x.to(torch.float32)
    if factor is not None:
        wide = wide * (factor * 2.0**-exponent)
    elif exponent:
        wide = wide * 2.0**-exponent
    within = wide.clamp(-format.largest, format.largest)
    if format.infinities:
        return torch.where(wide.isinf(), wide, within).to(format.dtype)
    # NaN where x is not finite, else zero.
    return (within - (wide - wide)).to(format.dtype)


def decode(codes: Tensor, dtype: torch.dtype, exponent: int = 0) -> Tensor:
    """The numbers of ``codes``, times 2^exponent."""
    numbers = widened(codes, dtype)
    return numbers * 2.0**exponent if exponent else numbers


def _composed(codes: Tensor, dtype: torch.dtype, exponent: int = 0) -> Tensor:
    if is_for_onnx(codes.dtype):
        return dequantized_linearly(codes, dtype, 2.0**exponent)
    return decode(codes, dtype, exponent)


def _batched(
    info: Any, in_dims: tuple[Any, ...], codes: Tensor, *given: Any
) -> tuple[Tensor, int | None]:
    return DECODE(codes, *given), in_dims[0]


#: ``decode`` as an operator, for graphs.
DECODE: Any = register(
    "decode(Tensor codes, ScalarType dtype, int exponent=0) -> Tensor",
    kernel=lambda codes, dtype, exponent=0: decode(codes, dtype, exponent),
    derivative=lambda codes, dtype, exponent=0: below(DECODE, codes, dtype, exponent),
    batched=_batched,
    decomposition=_composed,
)


def matmul(
    a: Tensor, b: Tensor, dtype: torch.dtype, exponent: int = 0, factor: Tensor | None = None
) -> Tensor:
    """``a`` @ ``b``ᵀ · 2^exponent / ``factor`` for codes a [M, K] and b [N, K].

    The result is [M, N] in ``dtype``. Either operand may be decoded already. ``factor``: a power of
    two, 0-d; None for one.
    """
    if dtype == torch.float64 or not is_fast(a.device, a.dtype, b.dtype):
        result = decode(a, dtype) @ decode(b, dtype).t()
        if factor is not None:
            return result * (2.0**exponent / factor)
        return result * 2.0**exponent if exponent else result
    return of_codes(a, b, dtype, exponent, factor)


def of_codes(
    a: Tensor, b: Tensor, dtype: torch.dtype, exponent: int = 0, factor: Tensor | None = None
) -> Tensor:
    """``matmul``, where the device ``multiplies`` codes."""
    rows, columns = a.shape[0], b.shape[0]
    a, b = aligned(a.contiguous(), rows=False), aligned(b.contiguous(), rows=True)
    scale = torch.full((), 2.0**exponent, dtype=torch.float32, device=a.device)
    if factor is not None:
        scale = scale / factor
    one = torch.ones((), dtype=torch.float32, device=a.device)
    # The second operand must be column-major, as bᵀ is.
    result = _multiplied(a, b.t(), scale, one, dtype)
    return result[:rows, :columns] if b.shape[0] != columns else result


def aligned(codes: Tensor, rows: bool) -> Tensor:
    """``codes`` [R, C], padded with zeros so that C (and R for ``rows``) is a multiple of BLOCK.

    The code of zero is zero in every format, and adds nothing to a sum.
    """
    right = -codes.shape[1] % BLOCK
    below = -codes.shape[0] % BLOCK if rows else 0
    return torch.nn.functional.pad(codes, (0, right, 0, below)) if right or below else codes


def _multiplied(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype
) -> Tensor:
    if not hasattr(torch.nn.functional, "scaled_mm"):
        result: Tensor = torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=dtype)
        return result
    from torch.nn.functional import ScalingType, scaled_mm

    each = ScalingType.TensorWise
    made: Tensor = scaled_mm(a, b, scale_a, each, scale_b, each, output_dtype=dtype)
    return made


def multiplies(device: torch.device, left: torch.dtype, right: torch.dtype) -> bool:
    """Does ``device`` multiply matrices of codes of these two types?

    The CPU does for all FP8 types. GPUs of NVIDIA do from compute capability 8.9 on, for E4M3 and
    E5M2, except E5M2 by E5M2. For other devices the answer is no.
    """
    fp8 = {torch.float8_e4m3fn, torch.float8_e5m2}
    if device.type == "cpu":
        return {left, right} <= fp8 | {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
    if device.type == "cuda" and torch.version.hip is None:
        both_wide = left == right == torch.float8_e5m2
        return {left, right} <= fp8 and not both_wide and _capability(device.index) >= (8, 9)
    return False


def is_fast(device: torch.device, left: torch.dtype, right: torch.dtype) -> bool:
    """Does it multiply them, and faster than their numbers?

    The CPU's kernel decodes element by element, again for each matmul.
    """
    return device.type != "cpu" and multiplies(device, left, right)


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)
