"""``unitify::grouped_mm``: torch's grouped matmul, in every type that its kernels take.

Each group of rows has a matrix of its own, as the tokens of each expert of a mixture have. torch
records ``aten::_grouped_mm`` in bfloat16 alone, though its kernels take more types. So models in
other types take a fallback while they are recorded, which rounds otherwise. This operator can be
recorded in all of them. On data it is torch's own, forward and backward; in float64, which that
refuses, it is one matmul for each group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.flop_counter import register_flop_formula

from unitify.runtime.registered import at_one_level, below, register

#: The last dimension of a result starts at multiples of so many bytes.
_ALIGNED = 16


def _has_no_data(x: Tensor) -> bool:
    return isinstance(x, FakeTensor | FunctionalTensor) or x.is_meta


def _is_torchs(x: Tensor) -> bool:
    return not _has_no_data(x) and x.dtype != torch.float64


def _kernel(x: Tensor, mat2: Tensor, ends: Tensor) -> Tensor:
    """``x`` [S, K] and ``mat2`` [G, K, N] give [S, N]; ``ends`` [G]: the rows before each end.

    With two matrices, [K, S] and [S, N], each group of S gives one matrix of the result [G, K, N].
    """
    if _is_torchs(x):
        return torch._grouped_mm(x, mat2, offs=ends)
    sizes = [x.shape[-2], mat2.shape[-1]]
    by = _ALIGNED // x.element_size()
    row = (sizes[-1] + by - 1) // by * by
    strides = [row, 1]
    if x.dim() == mat2.dim():
        sizes, strides = [ends.shape[0], *sizes], [sizes[0] * row, *strides]
    result = x.new_empty_strided(sizes, strides)
    return result if _has_no_data(x) else _one_by_one(x, mat2, ends, result.zero_())


def _one_by_one(x: Tensor, mat2: Tensor, ends: Tensor, result: Tensor) -> Tensor:
    start = 0
    for group, end in enumerate(ends.tolist()):
        rows = slice(start, end)
        if x.dim() == mat2.dim():
            result[group] = x[:, rows] @ mat2[rows]
        elif x.dim() == 2:
            result[rows] = x[rows] @ mat2[group]
        else:
            result[:, rows] = x[group] @ mat2[:, rows]
        start = end
    return result


class _GroupedMM(torch.autograd.Function):
    """The operator with the derivatives of ``aten::_grouped_mm``, in terms of itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mat2: Tensor, ends: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, mat2, ends)
        result: Tensor = below(GROUPED_MM, x, mat2, ends)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mat2, ends = ctx.saved_tensors
        of_x = of_mat2 = None
        if gradient is None:
            return None, None, None
        if ctx.needs_input_grad[0]:
            if _is_by_column(x):
                of_x = GROUPED_MM(mat2, gradient.mT, ends).mT
            else:
                of_x = GROUPED_MM(gradient, mat2.mT, ends)
        if ctx.needs_input_grad[1]:
            if _is_by_column(mat2):
                of_mat2 = GROUPED_MM(gradient.mT, x, ends).mT
            else:
                of_mat2 = GROUPED_MM(x.mT, gradient, ends)
        return of_x, of_mat2, None


def _is_by_column(matrices: Tensor) -> bool:
    """Are columns contiguous? Then torch computes the gradient so, too."""
    row, column = matrices.stride()[-2:]
    return bool(row == 1 and column == matrices.shape[-2])


_defined = at_one_level(_GroupedMM)


def _derivative(x: Tensor, mat2: Tensor, ends: Tensor) -> Tensor:
    if _is_torchs(x):
        return torch._grouped_mm(x, mat2, offs=ends)
    result: Tensor = _defined(x, mat2, ends)
    return result


def _by_row(x: Tensor, mat2: Tensor, ends: Tensor) -> Tensor:
    """One matrix for each row, for graphs that run elsewhere; only for a ``mat2`` of groups."""
    if isinstance(x, FakeTensor) and get_proxy_mode() is None:
        # Where sizes are free, torch asks decompositions for those of a result.
        return _kernel(x, mat2, ends)
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    groups = (rows >= ends).sum(1)
    return torch.bmm(x.unsqueeze(1), mat2[groups.clamp(max=mat2.shape[0] - 1)]).squeeze(1)


GROUPED_MM: Any = register(
    "grouped_mm(Tensor self, Tensor mat2, Tensor offs) -> Tensor",
    kernel=_kernel,
    derivative=_derivative,
    decomposition=_by_row,
    is_opaque=True,
)


@register_flop_formula(torch.ops.unitify.grouped_mm)
def _flops(x: Any, mat2: Any, ends: Any, *_: Any, **__: Any) -> int:
    """Those of one matmul of all rows, for the shapes of the operands."""
    *_groups, inner, columns = mat2
    return 2 * int(x[-2]) * int(inner) * int(columns)
