"""Moments of a softmax over independent normal logits, as integrals over one variable.

With Z = Σ exp(x) and 1/Zᵏ = ∫ tᵏ⁻¹ exp(−tZ) dt / (k−1)!, an expectation over n logits is one
integral of products of one-dimensional expectations E[exp(jx − t eˣ)]. This is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unitify.analysis.quadrature import normal_nodes

#: The most pairs of arguments that are integrated without interpolation, and the pairs that are
#: integrated at once (their arrays take a few megabytes).
_FEW, _AT_ONCE = 4, 64
#: log2 of a number that counts as zero, such as the Jacobian of one logit.
_NOTHING = -100.0
#: Grid points an octave of each argument, and the integrals at points that were computed.
_DENSITY = 4
_COMPUTED: dict[tuple[str, float, float], float] = {}
#: Steps of the integrals over log t and over x, for logits of variance up to ``_USUAL``, and above.
_USUAL, _STEPS = 4.0, ((128, 64), (384, 192))
#: j → tʲ E[exp(jx − t eˣ)] at every t.
Moments = Callable[[int], Tensor]


def participation(var: Tensor, count: Tensor) -> Tensor:
    """E[Σ p²] of a softmax over ``count`` independent normal logits of variance ``var``.

    Between 1/count (equal logits) and 1 (one logit wins).
    """
    return _by_rows(_participation, var, count).clamp(max=1.0)


def jacobian(var: Tensor, count: Tensor) -> Tensor:
    """E‖diag(p) − p pᵀ‖², Frobenius, of the same softmax: Σ p² − 2 Σ p³ + (Σ p²)².

    This is the sum of the mean squares of the logits' gradients, where the gradients of the
    probabilities are independent and of unit RMS. It is zero for one logit, and where one wins.
    """
    return _by_rows(_jacobian, var, count)


def _participation(moments: Moments, n: Tensor) -> Tensor:
    return n * moments(2) * moments(0).clamp_min(1e-300) ** (n - 1)


def _jacobian(moments: Moments, n: Tensor) -> Tensor:
    alone = moments(0).clamp_min(1e-300)
    squared = moments(2)
    one = squared - moments(3) + moments(4) / 6
    return n * alone ** (n - 1) * one + n * (n - 1) * alone ** (n - 2) * squared**2 / 6


def _by_rows(integrand: Callable[[Moments, Tensor], Tensor], var: Tensor, count: Tensor) -> Tensor:
    """∫ of ``integrand`` over log t for every pair; interpolated on a grid for many pairs."""
    var, count = torch.broadcast_tensors(var.double(), count.double())
    pairs = var.flatten(), count.flatten()
    if var.numel() <= _FEW:
        return _integral(integrand, *pairs).reshape(var.shape)
    rows, where = torch.stack(pairs, 1).unique(dim=0, return_inverse=True)
    exact = len(rows) <= _FEW
    found = (_integral if exact else _interpolated)(integrand, rows[:, 0], rows[:, 1])
    return found[where].reshape(var.shape)


def _interpolated(
    integrand: Callable[[Moments, Tensor], Tensor], var: Tensor, count: Tensor
) -> Tensor:
    """Bilinear interpolation of logarithms: within half a percent, as the functions are smooth."""
    point = torch.stack([var.clamp(1e-12, 1e4), count], 1).log2() * _DENSITY
    corner = point.floor()
    share = point - corner
    total = torch.zeros_like(var)
    for step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = torch.tensor(step, dtype=torch.float64)
        weight = (at * share + (1 - at) * (1 - share)).prod(1)
        points, where = (corner + at).unique(dim=0, return_inverse=True)
        total = total + weight * _points(integrand, points)[where]
    return torch.where(total > _NOTHING + 1, total.exp2(), 0.0)


def _points(integrand: Callable[[Moments, Tensor], Tensor], points: Tensor) -> Tensor:
    """log2 of the integral at grid points. Each point is computed once a process."""
    keys = [(integrand.__name__, *point) for point in points.tolist()]
    missing = [i for i, key in enumerate(keys) if key not in _COMPUTED]
    for start in range(0, len(missing), _AT_ONCE):
        chunk = missing[start : start + _AT_ONCE]
        var, count = (points[chunk] / _DENSITY).exp2().unbind(1)
        found = _integral(integrand, var, count).log2().clamp_min(_NOTHING)
        _COMPUTED.update(zip((keys[i] for i in chunk), found.tolist(), strict=True))
    return torch.tensor([_COMPUTED[key] for key in keys], dtype=torch.float64)


def _integral(integrand: Callable[[Moments, Tensor], Tensor], var: Tensor, count: Tensor) -> Tensor:
    width, n = var.reshape(-1, 1, 1).clamp(1e-12, 1e4), count.reshape(-1, 1, 1)
    steps, nodes = _STEPS[float(width.max()) > _USUAL]
    z, weights = normal_nodes(nodes)
    x = width.sqrt() * z
    # The integrand is large around t ≈ 1/Z: between one winning logit and n average ones.
    low = -(2 * width + 8 * width.sqrt() + n.log() + 12)
    high = 8 * width.sqrt() + 6
    share = torch.linspace(0, 1, steps + 1, dtype=torch.float64).reshape(1, -1, 1)
    log_t = low + (high - low) * share
    decay = -torch.exp(log_t + x)
    found = integrand(lambda j: torch.exp(j * (log_t + x) + decay) @ weights, n.squeeze(-1))
    total = found.sum(-1) * ((high - low) / steps).reshape(-1)
    return total.clamp_min(0.0)
