"""Grouped matmuls: torch's own on data, recorded in every type, as the experts of a mixture run."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import unitify
from unitify.formats.table import FORMATS, quantize
from unitify.runtime.grouped_mm import GROUPED_MM

TYPES = (torch.float32, torch.bfloat16, torch.float16)
ENDS = torch.tensor([3, 6, 6, 16], dtype=torch.int32)
#: Are the columns of the left and of the right matrices contiguous?
BY_COLUMN = list(itertools.product((False, True), repeat=2))


def drawn(rows: int, columns: int, *groups: int, by_column: bool, dtype: torch.dtype) -> Tensor:
    shape = (*groups, columns, rows) if by_column else (*groups, rows, columns)
    made = torch.randn(shape, dtype=torch.float64).to(dtype)
    return made.mT if by_column else made


def operands(dtype: torch.dtype, left: bool = False, right: bool = True) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = drawn(16, 32, by_column=left, dtype=dtype)
    return x, drawn(32, 24, 4, by_column=right, dtype=dtype)


def results(run: Callable[..., Tensor], x: Tensor, matrices: Tensor) -> list[Tensor]:
    """The result and the two gradients."""
    leaves = x.detach().requires_grad_(), matrices.detach().requires_grad_()
    result = run(*leaves, ENDS)
    torch.manual_seed(1)
    return [result, *torch.autograd.grad(result, leaves, torch.randn(result.shape).to(x.dtype))]


def of_torch(x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(x, matrices, offs=ends)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("left", "right"), BY_COLUMN)
def test_it_is_torchs_also_compiled(dtype: torch.dtype, left: bool, right: bool) -> None:
    x, matrices = operands(dtype, left, right)
    expected = results(of_torch, x, matrices)
    assert_same(results(GROUPED_MM, x, matrices), expected)
    compiled = torch.compile(lambda *given: GROUPED_MM(*given), backend="aot_eager")
    assert_same(results(compiled, x, matrices), expected)


@pytest.mark.parametrize("columns", [8, 30, 33])
def test_without_data_it_has_the_same_layout(columns: int) -> None:
    for dtype in TYPES:
        x, matrices = torch.randn(16, 32).to(dtype), torch.randn(4, columns, 32).to(dtype).mT
        real = GROUPED_MM(x, matrices, ENDS)
        with FakeTensorMode() as mode:
            fake = GROUPED_MM(*(mode.from_tensor(t) for t in (x, matrices, ENDS)))
        meta = GROUPED_MM(x.to("meta"), matrices.to("meta"), ENDS.to("meta"))
        assert real.shape == fake.shape == meta.shape
        assert real.stride() == fake.stride() == meta.stride()


def test_in_double_precision_it_has_right_gradients() -> None:
    x, matrices = operands(torch.float64)
    leaves = x.requires_grad_(), matrices.requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: GROUPED_MM(*given, ENDS), leaves)
    assert torch.autograd.gradgradcheck(lambda *given: GROUPED_MM(*given, ENDS), leaves)
    single = GROUPED_MM(x.detach().float(), matrices.detach().float(), ENDS)
    torch.testing.assert_close(GROUPED_MM(*leaves, ENDS).float(), single)


def test_its_decomposition_computes_the_same() -> None:
    x, matrices = operands(torch.float32)
    into = unitify.decompositions()[GROUPED_MM]
    torch.testing.assert_close(into(x, matrices, ENDS), of_torch(x, matrices, ENDS))


class Grouped(nn.Module):
    """A grouped linear layer, called by any of torch's names for it."""

    def __init__(self, call: Callable[..., Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.call = call
        self.weight = nn.Parameter(torch.randn(4, 24, 32, dtype=dtype))

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.call(x, self.weight.mT, offs=ends) * 2


def by_keywords(x: Tensor, matrices: Tensor, offs: Tensor) -> Tensor:
    made: Tensor = torch._grouped_mm(input=x, mat2=matrices, offs=offs, out_dtype=x.dtype)
    return made


CALLS = (F.grouped_mm, torch._grouped_mm, torch.ops.aten._grouped_mm, by_keywords)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("call", CALLS, ids=["functional", "torch", "operator", "keywords"])
def test_a_model_with_one_is_exact(call: Callable[..., Tensor], dtype: torch.dtype) -> None:
    model = Grouped(call, dtype)
    module = unitify.transform(model, (torch.randn(16, 32).to(dtype), ENDS))
    assert module.verification is not None
    assert module.verification.exact
    longer, ends = torch.randn(40, 32).to(dtype), torch.tensor([0, 9, 21, 40], dtype=torch.int32)
    assert torch.equal(module(longer, ends), model(longer, ends))


def rounded(tensor: Tensor, cast: unitify.Cast) -> Tensor:
    return quantize(tensor * 2.0**-cast.exponent, FORMATS[cast.format]) * 2.0**cast.exponent


def test_its_casts_are_those_of_a_contraction() -> None:
    model, x = Grouped(F.grouped_mm, torch.float32), torch.randn(16, 32)
    module = unitify.transform(model, (x, ENDS), recipe="fp8,multiple=8")
    (cast,) = [c for c in module.casts if c.is_contraction]
    assert cast.is_cast
    assert cast.has_weight
    assert cast.flops == 2 * 16 * 32 * 24
    of_x, of_weight, _ = cast.casts
    matrices = rounded(model.weight, of_weight).mT
    assert torch.equal(module(x, ENDS), model.call(rounded(x, of_x), matrices, offs=ENDS) * 2)


def test_other_forms_stay_torchs() -> None:
    class Batched(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.grouped_mm(x, y)

    x, y = torch.randn(4, 8, 16).bfloat16(), torch.randn(4, 16, 8).bfloat16()
    module = unitify.transform(Batched(), (x, y.mT.contiguous().mT))
    assert torch.equal(module(x, y.mT.contiguous().mT), F.grouped_mm(x, y.mT.contiguous().mT))
