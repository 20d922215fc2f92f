"""Formats in blocks, exhaustively: every scale by every element, against two other libraries."""

from __future__ import annotations

from functools import cache
from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gfloat.block import compute_scale_amax, quantize_block
from gfloat.formats import (
    format_info_mxfp4_e2m1,
    format_info_mxfp8_e4m3,
    format_info_ocp_e2m1,
    format_info_ocp_e4m3,
    format_info_ocp_e8m0,
)
from slow import some_slow
from torch import Tensor, nn

import unitify
from unitify.formats import snr
from unitify.formats.band import band_of
from unitify.formats.blocks import in_blocks
from unitify.formats.signal_to_noise import GeneralizedNormal
from unitify.formats.table import E2M1, E4M3, E8M0, FORMATS, BlockFormat, quantize
from unitify.rule_trials.calls import Trial, call, drawn, run
from unitify.rulebook.contractions import contracted, contraction_operands
from unitify.rulebook.rule_table import load_rules
from unitify.runtime.cast import cast

BLOCKS = {name: f for name, f in FORMATS.items() if isinstance(f, BlockFormat)}
#: Elements and scales, as ml_dtypes has them.
NUMPY = {"e2m1": ml_dtypes.float4_e2m1fn, "e4m3": ml_dtypes.float8_e4m3fn}
GFLOAT = {
    "mxfp8": format_info_mxfp8_e4m3,
    "mxfp4": format_info_mxfp4_e2m1,
    "nvfp4": gfloat.BlockFormatInfo("nvfp4", format_info_ocp_e2m1, 16, format_info_ocp_e4m3),
}


def test_scales_are_powers_of_two() -> None:
    theirs = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    by_gfloat = [gfloat.decode_float(format_info_ocp_e8m0, code).fval for code in range(256)]
    by_torch = torch.arange(256, dtype=torch.uint8).view(E8M0.dtype).double()
    ours = np.append(E8M0.values().numpy(), np.nan)
    for other in (theirs, np.array(by_gfloat), by_torch.numpy()):
        assert np.array_equal(ours, other, equal_nan=True)
    assert E8M0.bits == format_info_ocp_e8m0.k
    assert E8M0.nans == format_info_ocp_e8m0.num_nans


@pytest.mark.parametrize("name", BLOCKS)
def test_the_table_is_that_of_gfloat(name: str) -> None:
    format, theirs = BLOCKS[name], GFLOAT[name]
    assert format.size == theirs.k
    assert format.bits == theirs.element_bits
    assert format.scale.bits == theirs.scale_bits
    assert (format.element.largest, format.scale.largest) == (theirs.etype.max, theirs.stype.max)
    assert format.largest == min(theirs.etype.max * theirs.stype.max, torch.finfo().max)
    positive = [abs(gfloat.decode_float(theirs.stype, code).fval) for code in range(256)]
    least = min(value for value in positive if value > 0)
    assert format.smallest_subnormal == theirs.etype.smallest * least


@cache
def blocks_of(name: str) -> Tensor:
    """For every scale, blocks that hold it in place by their largest element, and all else.

    Every number of the element, every midpoint, and the float32 on either side, times the scale.
    """
    format = BLOCKS[name]
    values = format.element.values().float()
    middle = (values[1:] + values[:-1]) / 2
    infinity = torch.tensor(torch.inf)
    sides = [torch.nextafter(middle, infinity), torch.nextafter(middle, -infinity)]
    within = torch.cat([values, middle, *sides])
    within = torch.cat([within, -within])
    rows = in_blocks(within, format.size - 1, -1)
    # Above the largest number a power of two saturates the elements.
    tops = [format.element.largest]
    if not format.scale.mantissa_bits:
        tops += [2.0**format.element.max_exponent, 1.99 * 2.0**format.element.max_exponent]
    held = [torch.cat([torch.full((len(rows), 1), top), rows], 1) for top in tops]
    scales = format.scale.values().float()
    beyond = scales[-1:] * 4
    scales = torch.cat([scales, beyond[beyond.isfinite()]])
    every = torch.cat(held)[None] * scales[:, None, None]
    every = torch.cat([every.flatten(0, 1), torch.randn(64, format.size)])
    return every[every.isfinite().all(1)]


def found(format: BlockFormat) -> Any:
    """How gfloat is told to find a scale."""
    if not format.scale.mantissa_bits:
        return compute_scale_amax

    def rounded(_: float, block: Any) -> float:
        largest = np.abs(block).max().astype(np.float32) / np.float32(format.element.largest)
        return gfloat.round_float(format_info_ocp_e4m3, float(largest), sat=True)

    return rounded


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_rounded_as_by_gfloat(name: str) -> None:
    blocks = blocks_of(name)
    some = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))[:400]
    blocks = blocks[some]
    ours = quantize(blocks, BLOCKS[name])
    scale = found(BLOCKS[name])
    for block, own in zip(blocks.numpy(), ours.numpy(), strict=True):
        # gfloat rounds a quotient by zero.
        has_scale = scale(BLOCKS[name].element.max_exponent, block) > 0
        theirs = quantize_block(GFLOAT[name], block, scale) if has_scale else 0 * block
        assert np.array_equal(theirs.astype(np.float32), own)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_rounded_as_by_ml_dtypes(name: str) -> None:
    format = BLOCKS[name]
    blocks = blocks_of(name).numpy()
    largest = np.abs(blocks).max(1, keepdims=True)
    if format.scale.mantissa_bits:
        wide = np.minimum(largest / np.float32(format.element.largest), format.scale.largest)
        scales = wide.astype(NUMPY["e4m3"]).astype(np.float32)
    else:
        _, exponents = np.frexp(np.maximum(largest, 1e-45).astype(np.float64))
        powers = np.clip(exponents - 1 - format.element.max_exponent, -127, 127)
        codes = (powers + 127).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)
        scales = codes.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        divided = np.nan_to_num(blocks / scales, nan=0.0, posinf=0.0, neginf=0.0)
        limit = np.float32(format.element.largest)
        elements = np.clip(divided, -limit, limit).astype(NUMPY[format.element.name])
    theirs = elements.astype(np.float32) * scales
    assert np.array_equal(theirs, quantize(torch.from_numpy(blocks), format).numpy())


@pytest.mark.parametrize("name", BLOCKS)
def test_products_of_codes_are_left_as_they_are(name: str) -> None:
    """Rounding what was rounded changes nothing, where the largest element keeps the scale."""
    format = BLOCKS[name]
    held = quantize(blocks_of(name), format)
    assert torch.equal(quantize(held, format), held)


@pytest.mark.parametrize("axis", [-1, -2, -3, 0, 1])
def test_blocks_lie_along_an_axis(axis: int) -> None:
    x = torch.randn(40, 33, 50)
    blocks = in_blocks(x, 16, axis)
    assert torch.equal(blocks.flatten(-2)[..., : x.shape[axis]].movedim(-1, axis), x)
    assert blocks.shape[-1] == 16
    for format in BLOCKS.values():
        rounded = quantize(x, format, axis=axis)
        moved = quantize(x.movedim(axis, -1).contiguous(), format)
        assert torch.equal(rounded, moved.movedim(-1, axis))
        # The end of a dimension is the end of its last block.
        first = x.movedim(axis, -1)[..., : format.size]
        assert torch.equal(moved[..., : format.size], quantize(first, format))


@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_not_finite_stays_visible_and_where_it_is(name: str) -> None:
    x = torch.randn(4 * BLOCKS[name].size)
    special = x.clone()
    special[3], special[7] = torch.inf, torch.nan
    rounded = quantize(special, BLOCKS[name])
    x[3] = x[7] = 0.0
    expected = quantize(x, BLOCKS[name])
    expected[3] = expected[7] = torch.nan
    assert torch.equal(rounded.nan_to_num(nan=9e9), expected.nan_to_num(nan=9e9))
    assert float(quantize(torch.tensor(5.0), BLOCKS[name])) == 5.0 or name != "mxfp8"
    assert not quantize(torch.zeros(3, 40), BLOCKS[name]).any()
    assert quantize(torch.zeros(3, 0), BLOCKS[name]).shape == (3, 0)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_power_of_two_moves_the_numbers_alone(name: str) -> None:
    """Within the range of the scales: what makes an outer scale free to choose."""
    x = torch.randn(8, 64)
    for exponent in range(-3, 8):
        power = 2.0**exponent
        assert torch.equal(quantize(x * power, BLOCKS[name]), quantize(x, BLOCKS[name]) * power)


@pytest.mark.parametrize("power", [2.0, 1.0])
@pytest.mark.parametrize("name", BLOCKS)
def test_signal_to_noise_is_that_of_samples(name: str, power: float) -> None:
    """Of independent elements, at scales where the format of scales ends, too."""
    format = BLOCKS[name]
    generator = torch.Generator().manual_seed(1)
    uniform = torch.rand(2**19, generator=generator, dtype=torch.float64)
    laplace = (uniform - 0.5).sign() * torch.log1p(-2 * (uniform - 0.5).abs()) / 2**0.5
    x = laplace if power == 1.0 else torch.randn(2**19, generator=generator, dtype=torch.float64)
    for rms in (1.0, 1.37, 2.0**-9, 2.0**10):
        error = (quantize(x * rms, format) - x * rms).square()
        shares = error.reshape(64, -1).mean(1) / (rms * rms)
        mean, spread = float(shares.mean()), float(shares.std()) / 8
        predicted = 10 ** (-snr(format, rms, GeneralizedNormal(power)) / 10)
        assert abs(predicted - mean) < 4 * spread, (rms, predicted, mean)


def test_an_outer_scale_is_wide_of_its_window() -> None:
    """As docs/recipes.md says of NVFP4."""
    window = band_of(FORMATS["nvfp4"], 0.1)
    assert (window.low, window.high) == (2.0**-4.5, 2.0**9.5)


def test_casts_in_blocks_differentiate_and_map() -> None:
    x = torch.randn(3, 8, 48, requires_grad=True)
    weights = torch.randn(3, 8, 48)
    for name, format in BLOCKS.items():
        y = cast(x, name, name, 2, 1, False, True, -2)
        assert torch.equal(y, quantize(x / 4, format, axis=-2) * 4)
        (gradient,) = torch.autograd.grad(y, x, weights)
        assert torch.equal(gradient, quantize(weights / 2, format, axis=-2) * 2)
        mapped = torch.vmap(lambda t, name=name: cast(t, name, "", 2, 0, False, True, -2), 2, 2)
        each = [quantize(t / 4, format, axis=-2) * 4 for t in x.unbind(2)]
        assert torch.equal(mapped(x), torch.stack(each, 2))


@pytest.mark.parametrize("name", some_slow(list(BLOCKS), {"mxfp4", "mxfp8"}.__contains__))
def test_casts_in_blocks_compile(name: str) -> None:
    def rounded(x: Tensor) -> Tensor:
        made: Tensor = torch.ops.unitify.cast.default(x * 2, name, "")
        return made

    x = torch.randn(8, 48)
    assert torch.equal(torch.compile(rounded, fullgraph=True, dynamic=False)(x), rounded(x))


def test_elements_are_those_of_the_table() -> None:
    assert {f.element for f in BLOCKS.values()} == {E2M1, E4M3}
    assert {f.scale for f in BLOCKS.values()} == {E8M0, E4M3}


# -- along which dimension, by operation -------------------------------------------------

RULES = load_rules()
CONTRACTIONS = sorted(n for n, r in RULES.items() if len(r.casts) == 2 and len(r.contraction) == 2)


@pytest.mark.parametrize("operation", CONTRACTIONS)
def test_blocks_lie_along_what_is_summed_over(operation: str) -> None:
    """What is zero but for one place there is contracted with the same place, and no other."""
    rule = RULES[operation]
    for sample in (rule.sample, *rule.variants):
        made = call(rule, drawn(rule, sample, 0, torch.float64))
        operands = contraction_operands(rule, made.node)
        axes = [contracted(rule, made.node, name, node) for name, _, node in operands]
        assert max(axes) < 0
        names = [str(node.target) for _, _, node in operands]
        places = list(zip(names, axes, strict=True))

        def of(
            left: int | None,
            right: int | None,
            made: Trial = made,
            along: list[tuple[str, int]] = places,
        ) -> Tensor:
            tensors = dict(made.tensors)
            for (name, axis), place in zip(along, (left, right), strict=True):
                kept = torch.zeros_like(tensors[name])
                if place is not None:
                    kept.select(axis, place).copy_(tensors[name].select(axis, place))
                tensors[name] = kept
            return run(made.capture.graph, tensors, 0)[0]

        last = min(made.tensors[n].shape[a] for n, a in places) - 1
        assert not torch.equal(of(0, 0), of(None, None))
        if last:
            assert torch.equal(of(0, last), of(None, None))


def test_a_product_is_cast_along_what_it_sums_over() -> None:
    class Contractions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Conv2d(32, 32, 3, padding=1)
            self.linear = nn.Linear(32, 64)
            self.matrix = nn.Parameter(torch.randn(64, 32))

        def forward(self, x: Tensor) -> Tensor:
            rows = self.image(x).flatten(2).mT
            return self.linear(rows) @ self.matrix

    model, x = Contractions(), torch.randn(2, 32, 4, 4, requires_grad=True)
    module = unitify.transform(model, (x,), recipe="mxfp8", placement="casts")
    assert {c.runs for c in module.casts if c.is_contraction} == {"simulated"}

    def rounded(t: Tensor, axis: int) -> Tensor:
        return quantize(t, FORMATS["mxfp8"], axis=axis)

    image = F.conv2d(rounded(x, 1), rounded(model.image.weight, 1), model.image.bias, padding=1)
    rows = image.flatten(2).mT
    hidden = F.linear(rounded(rows, -1), rounded(model.linear.weight, -1), model.linear.bias)
    assert torch.equal(module(x), rounded(hidden, -1) @ rounded(model.matrix, 0))


@pytest.mark.parametrize("recipe", ["mxfp8", "mxfp4", "nvfp4"])
def test_recipes_in_blocks_train(recipe: str) -> None:
    """Towards what the model itself learns: most of the way from where it starts."""
    torch.manual_seed(0)
    x = torch.randn(512, 64)
    teacher = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32))
    y = teacher(x).detach()
    losses = {}
    for chosen in (None, recipe):
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 32))
        module = unitify.transform(student, (x,), recipe=chosen) if chosen else student
        optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
        held = []
        for _ in range(60):
            loss = F.mse_loss(module(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            held.append(float(loss.detach()))
        losses[chosen] = held
    start, plain, cast_ = losses[None][0], losses[None][-1], losses[recipe][-1]
    assert start - cast_ > 0.9 * (start - plain)
