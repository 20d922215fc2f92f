"""Moments of a softmax's weights over independent normal logits, as integrals over one variable.

With Z = Σ exp(x) and 1/Zᵏ = ∫ tᵏ⁻¹ exp(−tZ) dt / (k−1)!, an expectation over n logits is a single
integral of products of one-dimensional expectations E[exp(jx − t eˣ)], and exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unitify.analysis.moments import normal_nodes

#: Above this many, equal pairs of arguments are looked for.
_MANY = 64
#: Points of the integral over log t.
_STEPS = 384
#: j → tʲ E[exp(jx − t eˣ)] at every t.
Moments = Callable[[int], Tensor]


def participation(var: Tensor, count: Tensor) -> Tensor:
    """E[Σ p²] of a softmax over ``count`` independent normal logits of variance ``var``.

    Between 1/count (equal logits) and 1 (one logit wins).
    """
    return _by_rows(_participation, var, count).clamp(max=1.0)


def jacobian(var: Tensor, count: Tensor) -> Tensor:
    """E‖diag(p) − p pᵀ‖², Frobenius, of the same softmax: Σ p² − 2 Σ p³ + (Σ p²)².

    The mean square of the logits' gradients, summed over them, where those of the weights are
    independent and of unit RMS. Zero for one logit, and where one wins.
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
    """∫ of ``integrand`` over log t for every pair; equal pairs are computed once."""
    var, count = torch.broadcast_tensors(var.double(), count.double())
    if var.numel() > _MANY:
        # Masks leave few different rows: each is computed once, to four digits.
        pairs = torch.stack([var.flatten(), count.flatten()], 1)
        digits = 10 ** (4 - pairs.abs().clamp_min(1e-300).log10().ceil())
        rows, where = ((pairs * digits).round() / digits).unique(dim=0, return_inverse=True)
        if len(rows) < var.numel():
            return _by_rows(integrand, rows[:, 0], rows[:, 1])[where].reshape(var.shape)
    width, n = var.reshape(-1, 1, 1).clamp(1e-12, 1e4), count.reshape(-1, 1, 1)
    z, weights = normal_nodes(192)
    x = width.sqrt() * z
    # The integrand lives around t ≈ 1/Z: between one winning logit and n average ones.
    low = -(2 * width + 8 * width.sqrt() + n.log() + 12)
    high = 8 * width.sqrt() + 6
    steps = torch.linspace(0, 1, _STEPS + 1, dtype=torch.float64).reshape(1, -1, 1)
    log_t = low + (high - low) * steps
    decay = -torch.exp(log_t + x)
    found = integrand(lambda j: torch.exp(j * (log_t + x) + decay) @ weights, n.squeeze(-1))
    total = found.sum(-1) * ((high - low) / _STEPS).reshape(-1)
    return total.clamp_min(0.0).reshape(var.shape)
