"""Moments of a function of one operand, and of its derivative, by the midpoint rule.

The elements are assumed to be normal. Where a bound of the operand's range is near (that of a
square, an exponential or a probability), they have a gamma distribution from one bound on, or a
beta distribution between two. The square of a normal number has exactly a gamma distribution.

For smooth functions the midpoint rule converges as fast as Gauss-Hermite. It also handles a kink
(relu) and a jump (its derivative).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unitify.analysis.moments import Moment
from unitify.rulebook.refusal import refusals

#: Half-width in standard deviations; the normal has 1e-15 of its mass outside.
_REACH = 8.0
#: A bound further from the mean than this many standard deviations is ignored: a normal number
#: exceeds it once in 30,000.
_NEAR = 4.0
#: The mass that is left out at each end of a bounded distribution. Tensors of some thousand
#: elements have none there, and a function may have its pole there.
_RARE = 1e-4
#: The least shape parameter of a gamma or beta. Below it nearly all elements lie at a bound.
_LEAST = 0.02


def quadrature(function: Callable[[Tensor], Tensor], x: Moment) -> tuple[Moment, Moment]:
    """Moments of f(x) and of f'(x).

    Where f is defined for positive x only (a root, a logarithm) and no range is known, x is
    log-normal with the same mean and variance.
    """
    mean, std = torch.broadcast_tensors(x.mean, x.var.sqrt())
    if not bool(std.any()):
        points, weights = mean.unsqueeze(-1), torch.ones(1, dtype=torch.float64)
        value, slope = _on_points(function, points)
    elif near := near_bounds(x):
        points, weights = _ranged_nodes(mean, std, *near)
        value, slope = _on_points(function, points)
    else:
        z, weights = normal_nodes(_node_count(mean.numel()))
        points = mean.unsqueeze(-1) + std.unsqueeze(-1) * z
        value, slope = _on_points(function, points)
        if bool(value.isnan().any()) and bool((mean > 0).all()):
            spread = torch.log1p((std / mean) ** 2)
            center = mean.log() - spread / 2
            points = torch.exp(center.unsqueeze(-1) + spread.sqrt().unsqueeze(-1) * z)
            value, slope = _on_points(function, points)
    value, slope = _finite(value), _finite(slope)
    low = _extreme(function, points, value, -1.0)
    high = _extreme(function, points, value, 1.0)
    return (
        Moment((value * weights).sum(-1), (value * value * weights).sum(-1), low, high),
        Moment((slope * weights).sum(-1), (slope * slope * weights).sum(-1)),
    )


def near_bounds(x: Moment) -> tuple[float, float] | None:
    """The range of x, with far bounds as infinities; None where no bound is near.

    None, too, for a mean on a bound.
    """
    std = x.var.sqrt()
    low = x.low if bool((x.mean - x.low < _NEAR * std).any()) else -math.inf
    high = x.high if bool((x.high - x.mean < _NEAR * std).any()) else math.inf
    if math.isinf(low) and math.isinf(high):
        return None
    return (low, high) if bool(((x.mean > low) & (x.mean < high)).all()) else None


def distribution(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Parameters of the distribution with these bounds.

    α and β of a beta between two bounds; shape and scale of a gamma from one bound on.
    """
    if math.isfinite(low) and math.isfinite(high):
        share = (mean - low) / (high - low)
        var = (std / (high - low)) ** 2
        total = (share * (1 - share) / var.clamp_min(1e-12) - 1).clamp_min(2 * _LEAST)
        return (share * total).clamp_min(_LEAST), ((1 - share) * total).clamp_min(_LEAST)
    distance = mean - low if math.isfinite(low) else high - mean
    shape = (distance / std.clamp_min(1e-6 * distance)) ** 2
    shape = shape.clamp_min(_LEAST)
    return shape, distance / shape


def _ranged_nodes(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Points and their shares of the mass, along an additional last dimension.

    They are equally spaced in log x (gamma) or in the logit (beta), where densities are smooth.
    """
    first, second = (p.unsqueeze(-1) for p in distribution(mean, std, low, high))
    steps = (torch.arange(n := _node_count(mean.numel()), dtype=torch.float64) + 0.5) / n
    if math.isfinite(low) and math.isfinite(high):
        left = _log_quantile(first) - torch.log(first + second)
        right = torch.log(first + second) - _log_quantile(second)
        u = left + (right - left) * steps
        density = first * torch.nn.functional.logsigmoid(u)
        density = density + second * torch.nn.functional.logsigmoid(-u)
        points = low + (high - low) * torch.sigmoid(u)
    else:
        left, right = _log_quantile(first), torch.log(first + 8 * first.sqrt() + 16)
        u = left + (right - left) * steps
        density = first * u - u.exp()
        distance = second * u.exp()
        points = low + distance if math.isfinite(low) else high - distance
    weights = torch.exp(density - density.amax(-1, keepdim=True))
    return points, weights / weights.sum(-1, keepdim=True)


def _log_quantile(shape: Tensor) -> Tensor:
    """log of the ``_RARE`` quantile of a standard gamma distribution, approximately.

    The larger of its power law near zero and the approximation of Wilson and Hilferty (1931).
    """
    power = (math.log(_RARE) + torch.lgamma(shape + 1)) / shape
    cube = 1 - 1 / (9 * shape) - 3.72 / (3 * shape.sqrt())
    return torch.maximum(power, 3 * cube.clamp_min(1e-3).log() + shape.log())


def _on_points(function: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = points.detach().requires_grad_(True)
        value = function(leaf)
        with refusals():
            (slope,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    value = value.detach().double()
    return value, torch.zeros_like(value) if slope is None else slope.double()


def _extreme(
    function: Callable[[Tensor], Tensor], points: Tensor, value: Tensor, sign: float
) -> float:
    """The value of f where ``sign`` · f is greatest, refined around the best of the points."""
    count = points.shape[-1]
    best = int((sign * value).argmax())
    found = float(value.flatten()[best])
    row, index = points.reshape(-1, count)[best // count], best % count
    left, right = float(row[max(index - 1, 0)]), float(row[min(index + 1, count - 1)])
    for _ in range(3 if left < right else 0):
        closer = torch.linspace(left, right, 33, dtype=torch.float64)
        values = sign * _finite(function(closer).double())
        index = int(values.argmax())
        found = sign * max(sign * found, float(values[index]))
        left, right = float(closer[max(index - 1, 0)]), float(closer[min(index + 1, 32)])
    return found


def normal_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Midpoints on ±``_REACH`` standard deviations, and their shares of the normal mass."""
    step = 2 * _REACH / count
    z = (torch.arange(count, dtype=torch.float64) + 0.5) * step - _REACH
    weights = torch.exp(-0.5 * z * z)
    return z, weights / weights.sum()


def _finite(values: Tensor) -> Tensor:
    limit = torch.finfo(torch.float32).max
    return torch.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit)


def _node_count(elements: int) -> int:
    """Quadrature nodes an element: about a hundred thousand for all elements together.

    The error is largest for a kink between the fewest nodes, half a standard deviation apart: 1 %.
    """
    return int(min(1024, max(32, 2**17 // max(elements, 1))))
