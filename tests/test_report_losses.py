"""Magnitudes by exponent, and what formats lose of them: against rounding itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unitify.formats.losses import Loss, loss
from unitify.formats.magnitudes import LOWEST, magnitudes_of
from unitify.formats.signal_to_noise import snr
from unitify.formats.table import BF16, E4M3, E5M2, FP16, Format, quantize


def sample(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(20_000, generator=generator)
    if kind == "long tails":
        x = x.exp() * x.sign() * 40
    if kind == "zeros":
        x[::3] = 0
    if kind == "float64":
        x = x.double()
    return x


def counted(x: Tensor, format: Format) -> Loss:
    """The shares, element by element."""
    x = x.double()[x != 0]
    rounded = quantize(x, format)
    small = (x.abs() < format.smallest_normal) & (rounded != 0)
    return Loss(
        float((rounded == 0).double().mean()),
        float(small.double().mean()),
        float((x.abs() > format.largest).double().mean()),
    )


@pytest.mark.parametrize("exponent", [-12, 0, 9])
@pytest.mark.parametrize("format", [E4M3, E5M2], ids=lambda f: f.name)
@pytest.mark.parametrize("kind", ["normal", "long tails", "zeros", "float64"])
def test_losses_of_eight_bits_are_those_of_rounding(
    kind: str, format: Format, exponent: int
) -> None:
    """Every bound of these formats lies between two bins, at any power of two."""
    x, scale = sample(kind), 2.0**exponent
    found, expected = loss(format, magnitudes_of(x), scale), counted(x / scale, format)
    assert found.flushed == pytest.approx(expected.flushed, abs=1e-12)
    assert found.subnormal == pytest.approx(expected.subnormal, abs=1e-12)
    assert found.saturated == pytest.approx(expected.saturated, abs=1e-12)


@pytest.mark.parametrize("format", [BF16, FP16, E5M2, E4M3], ids=lambda f: f.name)
@pytest.mark.parametrize("rms", [2.0**-20, 2.0**-7, 1.0, 100.0])
def test_losses_of_an_rms_are_those_of_a_normal(format: Format, rms: float) -> None:
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(1)).double() * rms
    found, expected = loss(format, rms), counted(x, format)
    for name in ("flushed", "subnormal", "saturated"):
        share = getattr(found, name)
        deviation = math.sqrt(max(share * (1 - share), 1 / len(x)) / len(x))
        assert abs(share - getattr(expected, name)) < 4 * deviation


def test_magnitudes_keep_every_element() -> None:
    x = torch.tensor([0.0, 1.0, -1.5, 2.0**-149, 3e38, math.inf, math.nan, -0.0])
    found = magnitudes_of(x)
    assert (found.total, found.zeros, found.special) == (4, 2, 2)
    assert found.first == -149 >= LOWEST
    assert found.below(2.0**-148) == 0.25
    assert found.below(1.0) == 0.25
    assert found.below(1.25) == 0.5
    assert found.below(2.0**128) == 1.0
    assert math.fsum(found.octaves()) == pytest.approx(1)
    assert found.octaves()[149] == 0.5  # 1 and 1.5


@pytest.mark.parametrize("format", [E4M3, E5M2, FP16, BF16], ids=lambda f: f.name)
def test_what_is_exactly_a_bound_is_lost_as_rounding_does(format: Format) -> None:
    """Half of the smallest number is a tie, which goes to zero; the largest is held."""
    half, normal, largest = format.smallest_subnormal / 2, format.smallest_normal, format.largest
    for x in (half, half * 1.001, half * 0.999, normal, normal / 2, largest, largest * 1.001):
        held = torch.tensor([x], dtype=torch.float64)
        if format.mantissa_bits < 4 or x not in (largest, largest * 1.001):
            assert loss(format, magnitudes_of(held)) == counted(held, format)


def test_a_constant_keeps_what_it_is() -> None:
    """A power of two is rounded nowhere in its range; noise of what lies between two is counted."""
    ones = magnitudes_of(torch.ones(100))
    assert ones.rms == 1.0
    assert snr(E4M3, 1.0, ones) == math.inf
    assert snr(E4M3, 2.0**-11, ones) == 0.0
    assert snr(E4M3, 2.0**9, ones) == pytest.approx(-20 * math.log10(1 - 448 / 512))


def test_a_power_of_two_moves_octaves() -> None:
    x = sample("normal")
    plain, moved = magnitudes_of(x), magnitudes_of(x * 2.0**-5)
    assert (moved.first, moved.counts) == (plain.first - 5, plain.counts)


def test_nothing_is_known_of_nothing() -> None:
    empty = magnitudes_of(torch.zeros(4))
    assert (empty.total, empty.zeros, empty.octaves()) == (0, 4, ())
    assert empty.below(1.0) == 0
