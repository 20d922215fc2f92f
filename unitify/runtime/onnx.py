"""Casts in operators of ONNX: ``QuantizeLinear`` and ``DequantizeLinear``, which runtimes support.

``torch.onnx.export`` decomposes unknown operators. Then a cast to FP8 becomes such a pair instead
of arithmetic. Scales are powers of two, and zero points are zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unitify.formats.table import Format

#: The first opset of ONNX with FP8.
_VERSION = 19


def is_for_onnx(dtype: torch.dtype | None) -> bool:
    """Is a graph being exported to ONNX, and is ``dtype`` one of the FP8 types?"""
    is_fp8 = dtype is not None and dtype.is_floating_point and dtype.itemsize == 1
    return is_fp8 and torch.onnx.is_in_onnx_export()


def quantized_linearly(
    x: Tensor, format: Format, scale: float | Tensor, saturate: bool = True
) -> Tensor:
    """scale · round(x / scale), in the type of ``x``; infinities and NaN as in ``quantize``."""
    wide = x.to(torch.float32)
    if saturate:
        # ONNX would saturate infinities, too, so its own saturation stays off.
        limit = format.largest * scale
        wide = torch.where(wide.isinf(), wide, wide.clamp(-limit, limit))  # type: ignore[arg-type]
    assert format.dtype is not None
    stored = format.dtype
    codes = _node("QuantizeLinear", wide, scale, stored, stored, {"saturate": 0})
    return _node("DequantizeLinear", codes, scale, stored, torch.float32, {}).to(x.dtype)


def dequantized_linearly(codes: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """scale · codes, in ``dtype``."""
    return _node("DequantizeLinear", codes, scale, codes.dtype, torch.float32, {}).to(dtype)


def _node(
    name: str,
    x: Tensor,
    scale: float | Tensor,
    stored: torch.dtype,
    returned: torch.dtype,
    attributes: dict[str, Any],
) -> Tensor:
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=x.device)
    # The zero point gives the type of the codes.
    zero = torch.zeros((), dtype=stored, device=x.device)
    made: Tensor = torch.onnx.ops.symbolic(
        name, (x, scale, zero), attributes, dtype=returned, shape=x.shape, version=_VERSION
    )
    return made
