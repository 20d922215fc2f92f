"""Moments of an operation without a formula: it runs on samples of its operands.

Operands are drawn from their moments, without data. The operation runs forward and backward, and
the moments of its results and gradients are measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from unitify.analysis.moments import Moment, fitted
from unitify.analysis.on_arrays import Operands
from unitify.analysis.quadrature import distribution, near_bounds
from unitify.rulebook.operation import Operation
from unitify.rulebook.refusal import refusals

#: Moments are separate along a dimension where each is a mean of at least this many samples: a
#: mean square of 32 normal numbers has a relative error of √(2/32), a quarter.
_ENOUGH = 32
#: The mean square of so many draws is within a few thousandths. A draw of a Gamma distribution is
#: slow: 55 ns, as measured.
_MANY = 2**16


def sampled_results(
    operation: Operation, operands: Operands, seed: int, counted: Mapping[str, Tensor]
) -> list[Any]:
    """One draw of the operation's results (tensors, integers, None).

    ``counted``: operands that are known, by name.
    """
    drawn = {**draw(operation, operands, torch.Generator().manual_seed(seed)), **counted}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        result = operation(drawn)
    return list(result) if isinstance(result, list | tuple) else [result]


def sampled_gradients(
    operation: Operation, operands: Operands, grads: list[Moment | None], seed: int
) -> dict[str, list[Moment]]:
    """Moments of the gradient of every operand, by name; a list has one entry a tensor."""
    generator = torch.Generator().manual_seed(seed)
    drawn = draw(operation, operands, generator)
    leaves: dict[str, list[Tensor]] = {}
    for name, value in drawn.items():
        listed = value if isinstance(value, list) else [value]
        leaves[name] = [t.requires_grad_(True) for t in listed if isinstance(t, Tensor)]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        result = operation(drawn)
        results = list(result) if isinstance(result, list | tuple) else [result]
        starts = [
            (r, fitted(g, tuple(r.shape)))
            for r, g in zip(results, grads, strict=True)
            if g is not None and isinstance(r, Tensor) and r.requires_grad
        ]
        flat = [t for tensors in leaves.values() for t in tensors]
        if not starts or not flat:
            return {}
        outputs = [r for r, _ in starts]
        drawn_grads = [_draw_one(g, tuple(r.shape), r.dtype, generator) for r, g in starts]
        # A gradient is linear in that of the result, so its mean follows without a draw.
        mean_grads = [g.mean.to(r.dtype).expand(r.shape) for r, g in starts]
        with refusals():
            found, means = (
                iter(torch.autograd.grad(outputs, flat, given, None, True, allow_unused=True))
                for given in (drawn_grads, mean_grads)
            )
    gradients: dict[str, list[Moment]] = {}
    known = {str(i): g for i, g in enumerate(grads) if g is not None}
    for name, tensors in leaves.items():
        gradients[name] = []
        for leaf in tensors:
            apart = varying(known, tuple(leaf.shape))
            square, mean = (
                observed(torch.zeros_like(leaf) if g is None else g, apart)
                for g in (next(found), next(means))
            )
            gradients[name].append(
                Moment(mean.mean, torch.maximum(square.square, mean.mean.square()))
            )
    return gradients


def draw(
    operation: Operation,
    operands: Operands,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """A sample of every floating operand, in its shape, and in its type or ``dtype``."""
    drawn: dict[str, Any] = {}
    for name, argument in operation.operands.items():
        moment = operands[name]
        if isinstance(moment, list):
            drawn[name] = [
                _draw_one(m, operation.shape_of(a), dtype or a.meta["val"].dtype, generator)
                for m, a in zip(moment, argument, strict=True)
            ]
        else:
            own = dtype or argument.meta["val"].dtype
            drawn[name] = _draw_one(moment, operation.shape(name), own, generator)
    return drawn


def _draw_one(
    moment: Moment, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    if near := near_bounds(moment):
        return _draw_in_range(moment, shape, near, generator).to(dtype).contiguous()
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (moment.mean + moment.var.sqrt() * noise).expand(shape).to(dtype).contiguous()


def _draw_in_range(
    moment: Moment, shape: tuple[int, ...], near: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """A draw from the distributions of ``quadrature``."""
    low, high = near
    mean, std = torch.broadcast_tensors(moment.mean, moment.var.sqrt())
    first, second = (
        m.expand(shape) if m.numel() > 1 else m for m in distribution(mean, std, low, high)
    )
    one = _gamma(first, shape, generator)
    if math.isfinite(low) and math.isfinite(high):
        other = _gamma(second, shape, generator)
        return low + (high - low) * one / (one + other).clamp_min(1e-300)
    return low + second * one if math.isfinite(low) else high - second * one


def _gamma(concentration: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws of Gamma distributions. Where they are one, at most ``_MANY`` draws are repeated."""
    if concentration.numel() > 1:
        return torch._standard_gamma(concentration.contiguous(), generator)
    count = math.prod(shape)
    alike = concentration.reshape(1).expand(min(count, _MANY)).contiguous()
    drawn = torch._standard_gamma(alike, generator)
    return drawn.repeat(math.ceil(count / _MANY))[:count].view(shape)


def observed(tensor: Tensor, kept: Iterable[int] = ()) -> Moment:
    """The moments of one sample, separate along the dimensions ``kept`` and the last one.

    Only as many dimensions stay separate, from the first on, as leave ``_ENOUGH`` elements each.
    """
    values = torch.nan_to_num(tensor.detach().double().cpu(), posinf=3.4e38, neginf=-3.4e38)
    last = values.dim() - 1
    first = sorted(kept)
    fewer = [set(first[:count]) for count in range(len(first), 0, -1)]
    for apart in ({*first, last}, *fewer, {last}):
        pooled = [d for d in range(values.dim()) if d not in apart]
        if pooled and math.prod(values.shape[d] for d in pooled) >= _ENOUGH:
            break
    else:
        pooled = list(range(values.dim()))
    if not pooled:
        return Moment(values, values * values)
    return Moment(values.mean(pooled, keepdim=True), (values**2).mean(pooled, keepdim=True))


def varying(operands: Operands, shape: tuple[int, ...]) -> list[int]:
    """Dimensions of a result of this shape along which the moments of an operand vary.

    Only operands of as many dimensions count, and of these the dimensions of the same size.
    """
    moments = [m for m in operands.values() if isinstance(m, Moment) and m.mean.dim() == len(shape)]
    sizes = [torch.broadcast_shapes(m.mean.shape, m.square.shape) for m in moments]
    return [d for d, size in enumerate(shape) if size > 1 and any(s[d] == size for s in sizes)]
