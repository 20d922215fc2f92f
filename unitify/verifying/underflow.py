"""Gradients of a float16 model that fall below the normal range of its type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.execution import LossFunction, on_gradient
from unitify.diagnostics import GradientsUnderflow
from unitify.verifying.calls import Call
from unitify.verifying.side import Asking, Runnable, run

#: A smaller share of subnormal elements weighs less than the rounding of the others.
_NOTICEABLE = 0.01


def underflowing_gradients(
    side: Runnable, call: Call, asking: Asking, loss_fn: LossFunction | None
) -> Iterator[GradientsUnderflow]:
    """The submodule whose result has the largest share of subnormal or lost gradients, if any.

    Takes one run of the model. A model in another type than float16 has none.
    """
    model = side.target
    if not any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        return
    shares: dict[str, float] = {}
    handles = [
        module.register_forward_hook(_noting(name or type(model).__name__, shares))
        for name, module in model.named_modules()
    ]
    try:
        run(side, call, asking, loss_fn)
    finally:
        for handle in handles:
            handle.remove()
    worst = max(shares, key=lambda name: shares[name], default=None)
    if worst is not None and shares[worst] > _NOTICEABLE:
        yield GradientsUnderflow(where=worst, percent=100 * shares[worst])


def _noting(name: str, shares: dict[str, float]) -> Any:
    def note(gradient: Tensor) -> None:
        tiny = torch.finfo(gradient.dtype).smallest_normal
        lost = (gradient != 0) & (gradient.abs() < tiny)
        shares[name] = max(shares.get(name, 0.0), float(lost.double().mean()))

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.dtype == torch.float16:
                on_gradient(leaf, note)

    return hook
