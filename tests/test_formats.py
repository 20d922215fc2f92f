"""Formats and rounding, exhaustively: every code, every midpoint, against two other libraries."""

from __future__ import annotations

import math
from functools import cache

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.formats import (
    format_info_bfloat16,
    format_info_binary16,
    format_info_binary32,
    format_info_ocp_e2m1,
    format_info_ocp_e4m3,
    format_info_ocp_e5m2,
)
from torch import Tensor

import unitify  # noqa: F401 (registers the operator)
from unitify.formats.table import FORMATS, BlockFormat, Format, quantize

NUMPY = {
    "fp32": np.float32,
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}


def declared(name: str, precision: int, bits: int, bias: int, **special: object) -> object:
    """A format that gfloat knows how to round to, but has no name for."""
    return gfloat.FormatInfo(
        name=name, k=bits, precision=precision, bias=bias, is_signed=True,
        has_subnormals=True, is_twos_complement=False, **special,
    )  # fmt: skip


FNUZ = {"domain": gfloat.Domain.Finite, "has_nz": False, "num_high_nans": 0}
IEEE = {"domain": gfloat.Domain.Extended, "has_nz": True}
GFLOAT = {
    "fp32": format_info_binary32,
    "tf32": declared("tf32", 11, 19, 127, num_high_nans=2**10 - 1, **IEEE),
    "bf16": format_info_bfloat16,
    "fp16": format_info_binary16,
    "e5m2fnuz": declared("e5m2fnuz", 3, 8, 16, **FNUZ),
    "e5m2": format_info_ocp_e5m2,
    "e4m3fnuz": declared("e4m3fnuz", 4, 8, 8, **FNUZ),
    "e4m3": format_info_ocp_e4m3,
    "e2m1": format_info_ocp_e2m1,
}
SMALL = [name for name in NUMPY if FORMATS[name].bits <= 16]
#: Those whose values can be listed.
LISTED = [name for name, f in FORMATS.items() if f.bits < 32 and not isinstance(f, BlockFormat)]


def codes(format: Format) -> Tensor:
    """Every code of a format, decoded by torch where it has the type, as float32."""
    if format.dtype is None:
        every = np.arange(2**format.bits, dtype=np.uint8).view(NUMPY[format.name])
        return torch.from_numpy(every.astype(np.float32))
    if format.bits == 8:
        return torch.arange(256, dtype=torch.uint8).view(format.dtype).float()
    whole = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    return whole.view(format.dtype).float()


@cache
def probes(name: str) -> Tensor:
    """Every number, every midpoint, the float32 on either side of it, and what lies beyond."""
    format = FORMATS[name]
    values = format.values()
    # As if the format went on for two binades: where rounding would leave it.
    beyond = values[values >= format.largest / 2] * 2
    every = torch.cat([values, beyond[beyond > format.largest], 4 * values[-1:]])
    every = every[every <= torch.finfo(torch.float32).max]
    middle = ((every[1:] + every[:-1]) / 2).float()
    infinity = torch.tensor(torch.inf)
    sides = [torch.nextafter(middle, infinity), torch.nextafter(middle, -infinity)]
    positive = torch.cat([every.float(), middle, *sides])
    return torch.cat([positive, -positive])


def same(ours: Tensor, theirs: np.ndarray) -> bool:
    """Equal where there is a number, NaN where there is NaN; ±0 are one number."""
    with np.errstate(invalid="ignore"):
        theirs = theirs.astype(np.float64)
    return bool(np.array_equal(ours.double().numpy(), theirs, equal_nan=True))


@pytest.mark.parametrize("name", NUMPY)
def test_the_table_is_that_of_ml_dtypes(name: str) -> None:
    format, theirs = FORMATS[name], ml_dtypes.finfo(NUMPY[name])
    assert format.bits == theirs.bits
    assert format.exponent_bits == theirs.nexp
    assert format.mantissa_bits == theirs.nmant
    assert format.largest == float(theirs.max)
    assert format.smallest_normal == float(theirs.smallest_normal)
    assert format.smallest_subnormal == float(theirs.smallest_subnormal)


@pytest.mark.parametrize("name", GFLOAT)
def test_the_table_is_that_of_gfloat(name: str) -> None:
    format, theirs = FORMATS[name], GFLOAT[name]
    assert format.bits == theirs.k
    assert format.exponent_bits == theirs.expBits
    assert format.mantissa_bits == theirs.tSignificandBits
    assert format.max_exponent == theirs.emax
    assert format.largest == theirs.max
    assert format.smallest_normal == theirs.smallest_normal
    assert format.smallest_subnormal == theirs.smallest_subnormal
    assert format.nans == theirs.num_nans
    assert format.infinities == theirs.num_infs


@pytest.mark.parametrize("name", SMALL)
def test_codes_and_values_are_the_same_numbers(name: str) -> None:
    format = FORMATS[name]
    held = codes(format)
    theirs = np.arange(2**format.bits, dtype=f"u{max(format.bits // 8, 1)}").view(NUMPY[name])
    assert same(held, theirs)
    assert int(held.isnan().sum()) == format.nans
    assert int(held.isinf().sum()) == format.infinities
    finite = held[held.isfinite()].double()
    listed = format.values()
    assert torch.equal(finite.abs().unique(), listed)
    assert torch.equal(finite.unique(), torch.cat([-listed[1:].flip(0), listed]))


@pytest.mark.parametrize("name", SMALL)
def test_every_code_is_left_as_it_is(name: str) -> None:
    held = codes(FORMATS[name])
    for saturate in (True, False):
        kept = quantize(held, FORMATS[name], saturate)
        assert torch.equal(kept.nan_to_num(nan=-1e30), held.nan_to_num(nan=-1e30))


@pytest.mark.parametrize("name", SMALL)
def test_rounding_is_that_of_ml_dtypes(name: str) -> None:
    x = probes(name)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = x.numpy().astype(NUMPY[name])
    assert same(quantize(x, FORMATS[name], saturate=False), theirs)


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("name", [n for n in LISTED if n in GFLOAT])
def test_rounding_is_that_of_gfloat(name: str, saturate: bool) -> None:
    x = probes(name)
    # gfloat refuses what has no code, where this saturates.
    x = x if FORMATS[name].nans else x[x.abs() <= FORMATS[name].largest]
    theirs = gfloat.round_ndarray(GFLOAT[name], x.double().numpy(), sat=saturate)
    assert same(quantize(x, FORMATS[name], saturate), theirs)


@pytest.mark.parametrize("name", LISTED)
def test_double_precision_is_rounded_once(name: str) -> None:
    """A float64 so close to a midpoint that float32 would not tell them apart."""
    format = FORMATS[name]
    values = format.values()
    middle = (values[1:] + values[:-1]) / 2
    infinity = torch.tensor(torch.inf, dtype=torch.float64)
    above, below = torch.nextafter(middle, infinity), torch.nextafter(middle, -infinity)
    assert torch.equal(quantize(above, format), values[1:])
    assert torch.equal(quantize(below, format), values[:-1])
    even = torch.where(torch.arange(len(middle)) % 2 == 0, values[:-1], values[1:])
    assert torch.equal(quantize(middle, format), even)


def test_float32_is_a_format() -> None:
    x = torch.randn(10_000, dtype=torch.float64) * 10.0 ** torch.linspace(-44, 38, 10_000)
    fp32 = FORMATS["fp32"]
    assert same(quantize(x, fp32), x.numpy().astype(np.float32))
    assert torch.equal(quantize(x.float(), fp32), x.float())
    assert float(quantize(torch.tensor(1e39, dtype=torch.float64), fp32)) == fp32.largest
    above = torch.tensor(1e39, dtype=torch.float64)
    assert float(quantize(above, fp32, saturate=False)) == math.inf


def test_int8_is_the_integers() -> None:
    x = torch.arange(-140, 140.25, 0.25)
    expected = np.clip(np.rint(x.numpy()), -127, 127)
    for saturate in (True, False):
        assert same(quantize(x, FORMATS["int8"], saturate), expected)
    assert torch.equal(FORMATS["int8"].values(), torch.arange(128, dtype=torch.float64))


@pytest.mark.parametrize("name", ["fp32", *LISTED])
@pytest.mark.parametrize("saturate", [True, False])
def test_what_was_not_finite_stays_visible(name: str, saturate: bool) -> None:
    format = FORMATS[name]
    infinity = torch.inf if format.infinities else torch.nan
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    expected = np.array([infinity, -infinity, np.nan, 1.0])
    assert same(quantize(x, format, saturate), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_cast_within_a_narrow_type(name: str) -> None:
    """Half-width tensors round as float32 does, and saturate at what both types can hold."""
    format = FORMATS[name]
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.cat([torch.randn(1000), torch.tensor([6e4, 1e-7])]).to(dtype)
        assert torch.equal(quantize(x, format), quantize(x.float(), format).to(dtype))
        assert quantize(x, format).dtype == dtype


def test_casts_compile() -> None:
    """The kernel of the operator, fused by Inductor: the numbers of eager mode."""
    names = ["tf32", "int8", "e5m2", "e4m3"]
    x = torch.cat([torch.randn(256), torch.tensor([0.0, 1e-9, 500.0, 1e6, -torch.inf, torch.nan])])

    def every(x: Tensor) -> list[Tensor]:
        return [torch.ops.unitify.cast.default(x * 2, name, "") for name in names]

    compiled = torch.compile(every, fullgraph=True, dynamic=False)(x)
    for name, ours, eager in zip(names, compiled, every(x), strict=True):
        assert torch.equal(ours.nan_to_num(nan=-1.5), eager.nan_to_num(nan=-1.5)), name
