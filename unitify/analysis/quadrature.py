"""Moments of a function of one operand, and of its derivative, by the midpoint rule.

The elements are normal. Where a bound of the operand's range is near (a square, an exponential or a
probability has one), their distribution has that range: a gamma distribution from one bound on, a
beta distribution between two. The square of a normal number is of the first kind exactly.

The midpoint rule converges as fast as Gauss-Hermite for smooth functions and does not mind a kink
(relu) or a jump (its derivative).
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
#: A bound further from the mean than this many standard deviations says nothing.
_NEAR = 4.0
#: Mass at either end of a distribution with a range that is left out: among some thousand elements
#: there is none, and a function may have its pole there.
_RARE = 1e-4
#: The least shape parameter; with less, nearly all elements are equal.
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
    """The bounds of x that its elements come near to; an infinite one is not near. None if none is.

    A range that leaves no room around the mean is none.
    """
    std = x.var.sqrt()
    low = x.low if bool((x.mean - x.low < _NEAR * std).any()) else -math.inf
    high = x.high if bool((x.high - x.mean < _NEAR * std).any()) else math.inf
    if math.isinf(low) and math.isinf(high):
        return None
    return (low, high) if bool(((x.mean > low) & (x.mean < high)).all()) else None


def distribution(mean: Tensor, std: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Parameters of the distribution with these bounds.

    Beta's α and β between two; gamma's shape and scale from one (towards the other side).
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
    """Points, and each one's share of the mass, along a further last dimension.

    Equally spaced in log x (gamma) or in the logit (beta), where the densities are smooth.
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
    """log of about the ``_RARE`` quantile of a standard gamma distribution.

    Its power law near zero, or Wilson and Hilferty's cube, whichever is the larger.
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
    """The greatest value of ``sign`` · f, as f; looked for around the point that has it."""
    count = points.shape[-1]
    best = int((sign * value).argmax())
    found = float(value.flatten()[best])
    row, place = points.reshape(-1, count)[best // count], best % count
    left, right = float(row[max(place - 1, 0)]), float(row[min(place + 1, count - 1)])
    for _ in range(3 if left < right else 0):
        closer = torch.linspace(left, right, 33, dtype=torch.float64)
        values = sign * _finite(function(closer).double())
        place = int(values.argmax())
        found = sign * max(sign * found, float(values[place]))
        left, right = float(closer[max(place - 1, 0)]), float(closer[min(place + 1, 32)])
    return found


def normal_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Midpoints on ±``_REACH`` standard deviations, and their share of the normal's mass."""
    step = 2 * _REACH / count
    z = (torch.arange(count, dtype=torch.float64) + 0.5) * step - _REACH
    weights = torch.exp(-0.5 * z * z)
    return z, weights / weights.sum()


def _finite(values: Tensor) -> Tensor:
    limit = torch.finfo(torch.float32).max
    return torch.nan_to_num(values, nan=0.0, posinf=limit, neginf=-limit)


def _node_count(elements: int) -> int:
    """Quadrature nodes: many where few elements ask for them, a hundred thousand in all.

    The worst case is a kink amid the fewest nodes, half a standard deviation apart: within 1 %.
    """
    return int(min(1024, max(32, 2**17 // max(elements, 1))))
