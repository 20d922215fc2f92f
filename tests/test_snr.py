"""Signal to noise of casts: the integrals against sampling by z-score, and against known curves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unitify.formats.magnitudes import STEPS, magnitudes_of
from unitify.formats.signal_to_noise import (
    NORMAL,
    GeneralizedNormal,
    best_scale,
    relative_error,
    snr,
)
from unitify.formats.table import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, FORMATS, FP16, INT8, quantize

SAMPLES = 200_000
LIMIT = 4.0
RMS = [2.0**-12, 0.07, 1.0, 37.0, 200.0, 1e4]


def errors(x: Tensor, name: str) -> Tensor:
    return (quantize(x, FORMATS[name]) - x).square() / x.square().mean()


def drawn(power: float, wider: float = 4.0) -> tuple[Tensor, Tensor]:
    """Samples of a wider ``GeneralizedNormal(power)``, and the weights that make up for it.

    So that rare events (saturation at twelve times the RMS) are seen often enough to count.
    """
    torch.manual_seed(0)
    one, three = (math.lgamma(k / power) for k in (1, 3))
    width = math.exp((one - three) / 2)
    gamma = torch.distributions.Gamma(torch.tensor(1 / power, dtype=torch.float64), 1.0)
    powers = gamma.sample((SAMPLES,))  # of |x| / (wider · width), to this power
    x = wider * width * powers ** (1 / power) * (torch.rand(SAMPLES) - 0.5).sign()
    return x, wider * torch.exp(powers - powers * wider**power)


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0, 6.0])
@pytest.mark.parametrize("rms", RMS)
@pytest.mark.parametrize("name", ["fp16", "e5m2", "e4m3fnuz", "e4m3", "int8"])
def test_error_is_that_of_samples(name: str, rms: float, power: float) -> None:
    x, weights = drawn(power)
    sampled = (quantize(x * rms, FORMATS[name]) / rms - x).square() * weights
    predicted = relative_error(FORMATS[name], rms, GeneralizedNormal(power))
    standard_error = float(sampled.std()) / math.sqrt(SAMPLES)
    assert abs(float(sampled.mean()) - predicted) < LIMIT * standard_error
    for wrong in (predicted * 0.9, predicted * 1.1):
        assert abs(float(sampled.mean()) - wrong) > LIMIT * standard_error


def test_kurtosis_chooses_the_tails() -> None:
    for kurtosis in (2.0, 3.0, 6.0, 50.0, 600.0):
        distribution = GeneralizedNormal.of_kurtosis(kurtosis)
        assert distribution.kurtosis == pytest.approx(kurtosis, rel=1e-9)
    assert GeneralizedNormal.of_kurtosis(3.0).power == pytest.approx(2.0)
    assert GeneralizedNormal.of_kurtosis(6.0).power == pytest.approx(1.0)


def test_a_float_keeps_its_signal_over_its_range() -> None:
    """The plateaus of Blake et al. 2023, figure 2: mantissa bits are height, exponents width."""
    for format, low, high in [
        (E4M3FNUZ, -6.5, 6.0), (E4M3, -5.5, 7.0), (E5M2FNUZ, -14.5, 14.5), (E5M2, -13.5, 14.5),
    ]:  # fmt: skip
        peak = snr(format, 1.0)
        inside = [snr(format, 2.0 ** (low + 0.5)), snr(format, 2.0 ** (high - 0.5))]
        outside = [snr(format, 2.0 ** (low - 0.5)), snr(format, 2.0 ** (high + 0.5))]
        assert min(inside) > peak - 3 > max(outside)
    octave = 20 * math.log10(2)
    assert snr(E4M3, 1.0) - snr(E5M2, 1.0) == pytest.approx(octave, abs=0.1)
    assert snr(FP16, 1.0) - snr(E4M3, 1.0) == pytest.approx(7 * octave, abs=0.1)


def test_float32_is_as_good_as_its_bits() -> None:
    x = torch.randn(SAMPLES, dtype=torch.float64)
    for name in ("tf32", "fp32"):
        sampled = errors(x, name)
        z = (float(sampled.mean()) - relative_error(FORMATS[name], 1.0)) / (
            float(sampled.std()) / math.sqrt(SAMPLES)
        )
        assert abs(z) < LIMIT


def within_bins(x: Tensor, values: Tensor) -> float:
    """The standard error of the mean of ``values``, where only the bins of ``x`` are known."""
    mantissa, exponent = torch.frexp(x.abs())
    bins = exponent * STEPS + (mantissa * 2 * STEPS).floor()
    _, own, counts = torch.unique(bins, return_inverse=True, return_counts=True)
    deviations = (values - (torch.bincount(own, values) / counts)[own]).square()
    variances = torch.bincount(own, deviations) / (counts - 1).clamp_min(1)
    return math.sqrt(float((variances * counts).sum())) / len(x)


def test_a_histogram_is_what_was_measured() -> None:
    """Of a tensor with outliers no formula knows: error and RMS as counted, on average of a bin."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(50_000), 300 * torch.randn(100)]).double()
    held = magnitudes_of(x)
    rms = float(x.square().mean().sqrt())
    # Within half a bin.
    assert held.rms == pytest.approx(rms, rel=0.5 / STEPS)
    for factor in (2.0**-6, 0.3, 1.0, 4.0):
        for name in ("e4m3", "e5m2", "int8"):
            measured = errors(x * factor, name)
            counted = relative_error(FORMATS[name], rms * factor, held)
            assert abs(counted - float(measured.mean())) < LIMIT * within_bins(x, measured)
    again = magnitudes_of(x * 8)
    assert snr(E4M3, 1.0, again) == pytest.approx(snr(E4M3, 1.0, held))


def test_a_histogram_of_nothing() -> None:
    held = magnitudes_of(torch.zeros(10))
    assert held.rms == 0.0
    assert relative_error(E4M3, held.rms, held) == 0.0
    assert snr(E4M3, 0.0) == math.inf
    assert best_scale(E4M3, 0.0) == 1.0


@pytest.mark.parametrize("kurtosis", [3.0, 30.0, 600.0])
@pytest.mark.parametrize("format", [E4M3, E5M2, INT8])
def test_best_scale_is_the_best(format: object, kurtosis: float) -> None:
    distribution = GeneralizedNormal.of_kurtosis(kurtosis)
    for rms in (1.0, 3.0, 2.0**-9, 700.0):
        scale = best_scale(format, rms, distribution)
        assert math.frexp(scale)[0] == 0.5
        chosen = snr(format, rms / scale, distribution)
        others = [snr(format, rms / scale * 2.0**k, distribution) for k in range(-12, 13)]
        assert chosen >= max(others) - 0.1


def test_unit_scale_is_within_a_tenth_of_a_decibel_of_the_best() -> None:
    """The paper's claim, for the normal distribution and both 8-bit families."""
    for format in (E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, FP16):
        assert best_scale(format, 1.0, NORMAL) == 1.0


def test_outliers_take_headroom() -> None:
    """One element at 594 times the RMS: E4M3 ends at 448, and is best cast a little smaller."""
    count = 400_000
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).double()
    x[0] = 594.0 * math.sqrt(count / (count - 594.0**2))
    x /= x.square().mean().sqrt()
    held = magnitudes_of(x)
    scale = best_scale(E4M3, 1.0, held)
    assert scale > 1.0
    assert float(errors(x / scale, "e4m3").mean()) < float(errors(x, "e4m3").mean())
    assert snr(E4M3, 1 / scale, held) > snr(INT8, 1 / best_scale(INT8, 1.0, held), held)
