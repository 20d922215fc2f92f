"""Number formats as data, and rounding to them.

The table is that of Blake et al. 2023 (arXiv 2303.11257, table A.1), with INT8 for comparison.
Of the two 8-bit families, (a) is that of Noune et al. 2022 (arXiv 2206.02915): no infinities, and
one NaN instead of negative zero; (b) that of Micikevicius et al. 2022 (arXiv 2209.05433, table 1),
in which E5 has the special codes of IEEE 754, and E4 only one NaN of each sign.
Formats in blocks are those of OCP's Microscaling (MX) specification 1.0 and NVIDIA's NVFP4
(arXiv 2509.25149): small numbers, and a scale for each block of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unitify.formats.blocks import in_blocks
from unitify.formats.narrow import narrow
from unitify.formats.powers import exponent_of
from unitify.formats.rounding import octave, round_nearest


@dataclass(frozen=True)
class Format:
    """One number format: a sign, an exponent and a mantissa, with subnormal numbers.

    A format without mantissa bits has only powers of two, for scales: no sign and no zero.

    - ``paper``: its name in the table of Blake et al. 2023; "" if it is not there
    - ``dtype``: torch's type; None where torch has none, or only one for integers
    - ``max_exponent``, ``min_exponent``: log2 of the largest and of the smallest normal binade
    - ``largest``: the largest finite value
    - ``infinities``, ``nans``: the number of codes of ±infinity and of NaN
    """

    name: str
    paper: str
    dtype: torch.dtype | None
    exponent_bits: int
    mantissa_bits: int
    max_exponent: int
    min_exponent: int
    largest: float
    infinities: int
    nans: int

    @property
    def bits(self) -> int:
        """Width of a code, sign included."""
        return (self.mantissa_bits > 0) + self.exponent_bits + self.mantissa_bits

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number that has all mantissa bits."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    def values(self) -> Tensor:
        """Every finite number of the format from zero up, ascending, in float64.

        There are 2^(bits − 1) of them, so use it for formats of up to 19 bits.
        """
        exponents = torch.arange(self.min_exponent, self.max_exponent + 1, dtype=torch.float64)
        mantissas = torch.arange(2**self.mantissa_bits, dtype=torch.float64)
        normal = (1 + mantissas / 2**self.mantissa_bits) * torch.exp2(exponents).unsqueeze(1)
        below = mantissas * self.smallest_subnormal if self.mantissa_bits else mantissas[:0]
        every = torch.cat([below, normal.flatten()])
        return every[every <= self.largest]


@dataclass(frozen=True)
class BlockFormat(Format):
    """Blocks of ``size`` numbers of the format ``element``, each times a number of ``scale``.

    A block lies along one dimension. Its scale follows from its largest element: a power of two
    brings that into the largest binade of ``element``, any other scale to the largest number.
    Exponents and ``largest`` are those of the products. Mantissa, special codes and ``bits`` are
    those of an element. There are no ``values``.
    """

    element: Format
    scale: Format
    size: int

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive product."""
        scale = self.scale
        least = scale.smallest_subnormal if scale.mantissa_bits else scale.smallest_normal
        return self.element.smallest_subnormal * least

    def scales(self, largest: Tensor) -> Tensor:
        """The scale of blocks whose largest magnitude is ``largest``; zero where it rounds to zero.

        Scales saturate at the range of their format.
        """
        if self.scale.mantissa_bits:
            return quantize(largest / self.element.largest, self.scale)
        found = octave(largest, self.scale.min_exponent) * 2.0**-self.element.max_exponent
        return found.clamp(self.scale.smallest_normal, self.scale.largest)


def _blocks(name: str, element: Format, scale: Format, size: int) -> BlockFormat:
    largest = min(element.largest * scale.largest, FP32.largest)
    return BlockFormat(
        name=name,
        paper="",
        dtype=None,
        exponent_bits=element.exponent_bits,
        mantissa_bits=element.mantissa_bits,
        max_exponent=exponent_of(largest),
        min_exponent=element.min_exponent + scale.min_exponent,
        largest=largest,
        infinities=element.infinities,
        nans=element.nans,
        element=element,
        scale=scale,
        size=size,
    )


FP32 = Format(
    "fp32", "FP32", torch.float32, 8, 23, 127, -126, (2 - 2**-23) * 2.0**127, 2, 2**24 - 2
)
TF32 = Format("tf32", "TF32", None, 8, 10, 127, -126, (2 - 2**-10) * 2.0**127, 2, 2**11 - 2)
BF16 = Format("bf16", "BF16", torch.bfloat16, 8, 7, 127, -126, (2 - 2**-7) * 2.0**127, 2, 2**8 - 2)
FP16 = Format("fp16", "FP16", torch.float16, 5, 10, 15, -14, 65504.0, 2, 2**11 - 2)
E5M2FNUZ = Format("e5m2fnuz", "FP8 E5 (a)", torch.float8_e5m2fnuz, 5, 2, 15, -15, 57344.0, 0, 1)
E5M2 = Format("e5m2", "FP8 E5 (b)", torch.float8_e5m2, 5, 2, 15, -14, 57344.0, 2, 6)
E4M3FNUZ = Format("e4m3fnuz", "FP8 E4 (a)", torch.float8_e4m3fnuz, 4, 3, 7, -7, 240.0, 0, 1)
E4M3 = Format("e4m3", "FP8 E4 (b)", torch.float8_e4m3fn, 4, 3, 8, -6, 448.0, 0, 2)
#: The integers −127 … 127 of symmetric quantization: one binade of normal numbers (64 … 127), and
#: as many subnormal ones below, all at a distance of one.
INT8 = Format("int8", "", None, 1, 6, 6, 6, 127.0, 0, 0)
#: torch has codes of this format only in pairs, and no conversion.
E2M1 = Format("e2m1", "", None, 2, 1, 2, 0, 6.0, 0, 0)
#: Only for scales of blocks.
E8M0 = Format("e8m0", "", torch.float8_e8m0fnu, 8, 0, 127, -127, 2.0**127, 0, 1)
MXFP8 = _blocks("mxfp8", E4M3, E8M0, 32)
MXFP4 = _blocks("mxfp4", E2M1, E8M0, 32)
#: Besides the scales of its blocks, a cast tensor has one scale of its own, in float32.
NVFP4 = _blocks("nvfp4", E2M1, E4M3, 16)

#: The formats of casts by name, from the most bits to the fewest.
FORMATS = {
    f.name: f
    for f in (
        FP32, TF32, BF16, FP16, E5M2FNUZ, E5M2, E4M3FNUZ, E4M3, INT8, MXFP8, NVFP4, MXFP4, E2M1,
    )
}  # fmt: skip


#: Types to which torch converts as in IEEE 754, including infinities, NaN and overflow.
_IEEE = (torch.float16, torch.bfloat16)


def quantize(x: Tensor, format: Format, saturate: bool = True, axis: int = -1) -> Tensor:
    """``x`` rounded to ``format``, to nearest, ties to even, in the type and shape of ``x``.

    By default finite values beyond the largest number become that number. Without ``saturate`` they
    become infinity where they round to more (NaN in a format without infinity), as in IEEE 754.
    INT8, which has no special codes, always saturates, and so do blocks. Blocks lie along ``axis``,
    and the last one may be shorter.

    Infinities and NaN stay visible. An infinity stays one where the format has it. Otherwise both
    become NaN, also in INT8, which has no code for it. (A plain conversion would hide them: on the
    CPU infinity becomes the largest value of E4M3.)
    """
    if isinstance(format, BlockFormat):
        return _in_blocks(x, format, axis)
    if not saturate and x.dtype == torch.float32 and format.dtype in _IEEE:
        return narrow(x, format.dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if saturate and format.nans and not format.infinities:
        # NaN where x is not finite, else zero; subtracted, it leaves the sign of zeros.
        rounded = _rounded(wide.clamp(-format.largest, format.largest), format)
        return (rounded - (wide - wide)).to(x.dtype)
    if saturate or not format.nans:
        rounded = _rounded(wide.clamp(-format.largest, format.largest), format)
        is_special = wide.isinf()
    else:
        rounded = _by_arithmetic(wide, format)
        is_special = wide.isinf() | (rounded.abs() > format.largest)
    overflow = torch.inf if format.infinities else torch.nan
    return torch.where(is_special, wide * overflow, rounded).to(x.dtype)


def _in_blocks(x: Tensor, format: BlockFormat, axis: int) -> Tensor:
    """``x`` rounded in blocks. The rest after the last whole block is a shorter block.

    Padding it does not work: Inductor splits the loop over a dimension at the length of blocks, and
    drops the rest (torch 2.13, ``CppScheduling.try_loop_split``).
    """
    moved = x.movedim(axis, -1) if x.dim() else x.reshape(1)
    remaining = moved.shape[-1] % format.size
    pieces = [p for p in moved.split([moved.shape[-1] - remaining, remaining], -1) if p.shape[-1]]
    rounded = [
        _by_blocks(in_blocks(p, min(format.size, p.shape[-1]), -1), format).flatten(-2)
        for p in pieces
    ]
    found = torch.cat(rounded, -1) if len(rounded) > 1 else rounded[0] if rounded else moved
    return found.movedim(-1, axis) if x.dim() else found[0]


def _by_blocks(blocks: Tensor, format: BlockFormat) -> Tensor:
    wide = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    magnitudes = wide.abs()
    finite = torch.where(magnitudes.isfinite(), magnitudes, 0.0)
    scales = format.scales(finite.amax(-1, keepdim=True))
    # A block whose scale is zero becomes zero, apart from infinities and NaN.
    divided = wide / torch.where(scales > 0, scales, 1.0)
    return (quantize(divided, format.element) * scales).to(blocks.dtype)


def _rounded(x: Tensor, format: Format) -> Tensor:
    """``x`` rounded; all of it is within the format's range."""
    # torch converts float64 to float32 first, which rounds twice.
    if format.dtype is not None and x.dtype == torch.float32:
        return narrow(x, format.dtype)
    return _by_arithmetic(x, format)


def _by_arithmetic(x: Tensor, format: Format) -> Tensor:
    return round_nearest(x, format.mantissa_bits, format.min_exponent)
