"""Moments by quadrature and by the participation integral, against closed forms and sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unitify.analysis.moments import add, compress, fit, gaussian
from unitify.analysis.quadrature import quadrature
from unitify.analysis.softmax import jacobian, participation

#: 1/RMS of f(x) and of f'(x) for x ~ N(0, 1): closed forms where there are any, else published
#: constants (Blake et al. 2023, appendix) to their four digits.
CONSTANTS = {
    "relu": (F.relu, math.sqrt(2), math.sqrt(2)),
    "abs": (torch.abs, 1.0, 1.0),
    "square": (torch.square, 1 / math.sqrt(3), 0.5),
    "exp": (torch.exp, math.exp(-1), math.exp(-1)),
    "sin": (
        torch.sin,
        1 / math.sqrt((1 - math.exp(-2)) / 2),
        1 / math.sqrt((1 + math.exp(-2)) / 2),
    ),
    "gelu": (F.gelu, 1.5335, 1.4811),
    "silu": (F.silu, 1.6765, 1.6233),
    "tanh": (torch.tanh, 1.5925, 1.4674),
    "sigmoid": (torch.sigmoid, 1.8462, 4.7226),
    "mish": (F.mish, 1.4868, 1.4448),
    "hardswish": (F.hardswish, 1.7367, 1.6701),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_quadrature_gives_the_published_constants(name: str) -> None:
    function, alpha, beta = CONSTANTS[name]
    value, slope = quadrature(function, gaussian(0.0, 1.0))
    assert 1 / value.rms == pytest.approx(alpha, rel=2e-4)
    assert 1 / slope.rms == pytest.approx(beta, rel=2e-4)


def test_quadrature_of_a_known_tensor_is_the_function_itself() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    known = gaussian(0.0, 0.0, 1)
    value, slope = quadrature(torch.tanh, type(known)(x, x * x))
    assert torch.equal(value.mean, torch.tanh(x))
    torch.testing.assert_close(slope.mean, 1 - torch.tanh(x) ** 2)


def test_a_root_takes_positive_values() -> None:
    """A mean square of 64 normal numbers: log-normal is close, a normal would reach below zero."""
    x = torch.randn(100_000, 64, dtype=torch.float64).square().mean(-1)
    moment = gaussian(1.0, math.sqrt(1 + 2 / 64))
    value, slope = quadrature(torch.rsqrt, moment)
    assert float(value.mean) == pytest.approx(float(x.rsqrt().mean()), rel=1e-3)
    assert slope.rms == pytest.approx(float((0.5 * x**-1.5).square().mean().sqrt()), rel=1e-2)


@pytest.mark.parametrize("count", [2, 16, 300])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0, 10.0])
def test_participation_is_that_of_sampled_softmaxes(count: int, std: float) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(20_000, count, generator=generator, dtype=torch.float64) * std
    sampled = logits.softmax(-1).square().sum(-1)
    error = float(sampled.std()) / math.sqrt(len(sampled))
    predicted = float(participation(torch.tensor(std**2), torch.tensor(float(count))))
    assert abs(predicted - float(sampled.mean())) < 4 * error + 1e-4 * predicted


@pytest.mark.parametrize("count", [1, 2, 5, 64])
@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_jacobian_is_that_of_sampled_softmaxes(count: int, std: float) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(20_000, count, generator=generator, dtype=torch.float64) * std
    p = logits.softmax(-1)
    sampled = (torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)).square().sum((-1, -2))
    error = float(sampled.std()) / math.sqrt(len(sampled))
    predicted = float(jacobian(torch.tensor(std**2), torch.tensor(float(count))))
    assert abs(predicted - float(sampled.mean())) < 4 * error + 1e-4 * predicted + 1e-6


def test_participation_of_many_rows_is_that_of_each() -> None:
    var = torch.tensor([0.5, 2.0, 0.5]).repeat(50)
    count = torch.tensor([4.0, 9.0, 4.0]).repeat(50)
    one_by_one = torch.stack([participation(v, c) for v, c in zip(var[:3], count[:3], strict=True)])
    torch.testing.assert_close(participation(var, count), one_by_one.repeat(50), rtol=1e-3, atol=0)


@pytest.mark.parametrize("function", [participation, jacobian])
@pytest.mark.parametrize("widest", [0.3, 10.0])
def test_many_different_rows_are_within_half_a_percent(
    function: Callable[[Tensor, Tensor], Tensor], widest: float
) -> None:
    var = torch.linspace(0.02, widest, 3, dtype=torch.float64)[:, None]
    count = torch.arange(1, 24, dtype=torch.float64)
    # One pair at a time, which is never interpolated.
    exact = torch.stack([function(v, n) for v in var for n in count]).reshape(3, -1)
    found = function(var, count)
    torch.testing.assert_close(found, exact, rtol=5e-3, atol=1e-12)
    assert not torch.equal(found, exact)


def test_sums_of_independent_tensors_add_means_and_variances() -> None:
    total = add(gaussian(1.0, 2.0), gaussian(-3.0, 5.0))
    assert float(total.mean) == pytest.approx(-2.0)
    assert float(total.var) == pytest.approx(3.0 + 16.0)


def test_fit_averages_what_does_not_broadcast() -> None:
    array = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(fit(array, (3,)), array.mean(0))
    assert torch.equal(fit(array, (2, 5)), array.mean(1, keepdim=True))
    assert fit(array, (7, 2, 3)).shape == (1, 2, 3)


def test_compress_keeps_one_of_equal_positions() -> None:
    array = torch.arange(3.0).expand(4, 3)
    assert compress(array).shape == (1, 3)
    assert compress(array.contiguous()).shape == (1, 3)
