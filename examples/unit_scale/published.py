"""What the ``unit-scaling`` library stores: RMS of its operations' results and of their gradients.

A result is what an operation of ``unit_scaling.functional`` returns, its own multipliers included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_OPERATIONS = (
    "linear", "linear_readout", "gelu", "silu_glu", "scaled_dot_product_attention", "residual_add",
    "residual_split", "rms_norm", "layer_norm", "add", "embedding",
)  # fmt: skip


def stored_rms(model: nn.Module, *inputs: Tensor) -> tuple[list[float], list[float]]:
    """RMS of every value and every gradient of one training step, parameters included."""
    forward = [_rms(p) for p in model.parameters()]
    backward: list[float] = []
    with _observed(forward, backward):
        model(*inputs).backward()
    backward += [_rms(p.grad) for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [r for r in forward if r], [r for r in backward if r]


@contextlib.contextmanager
def _observed(forward: list[float], backward: list[float]) -> Iterator[None]:
    import unit_scaling.functional as U

    def watch(value: Any) -> None:
        for item in value if isinstance(value, tuple) else (value,):
            forward.append(_rms(item))
            if item.requires_grad:
                item.register_hook(lambda g: backward.append(_rms(g)))

    def wrapped(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            watch(result)
            return result

        return call

    with _replaced(U, {name: wrapped(getattr(U, name)) for name in _OPERATIONS}):
        yield


@contextlib.contextmanager
def true_gradients() -> Iterator[None]:
    """Inside, the library's functions have the gradients of what they compute."""
    import unit_scaling.functional as U

    plain = {"scale_fwd": lambda x, scale: x * scale, "scale_bwd": lambda x, _scale: x}
    with _replaced(U, plain):
        yield


@contextlib.contextmanager
def _replaced(module: Any, functions: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(module, name, function)
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def agreement(found: dict[str, Tensor], true: dict[str, Tensor]) -> tuple[float, float]:
    """The worst cosine of a parameter's gradients, and the spread of their ratios' logarithms.

    The spread is over all elements of all parameters, of |log2(found/true)| against the median of a
    parameter: zero for one constant ratio each.
    """
    cosines, spread = [], 0.0
    for name, gradient in found.items():
        a, b = gradient.double().flatten(), true[name].double().flatten()
        if not bool(b.any()):
            continue
        cosines.append(float(torch.nn.functional.cosine_similarity(a, b, 0)))
        counts = b.abs() > 1e-3 * b.abs().max()
        ratios = (a[counts] / b[counts]).abs().clamp_min(1e-30).log2()
        spread = max(spread, float((ratios - ratios.median()).abs().max()))
    return min(cosines), spread


def gradients(model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """The gradients of one step, by parameter."""
    model.zero_grad()
    model(*inputs).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
