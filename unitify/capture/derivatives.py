"""Whether autograd derives an in-place operation as it derives its out-of-place counterpart.

The gradient of an operation in place may be computed from the result (``elu_``), that of the
counterpart from the operand. The two round differently.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from unitify.capture.aliases import without_data
from unitify.capture.equality import same
from unitify.rulebook.dimensions import is_floating


def derives_alike(node: fx.Node, counterpart: OpOverload) -> bool:
    """Are gradients of ``node``, an operation in place, bitwise those of ``counterpart``?

    Where autograd has two formulas, both are tried on random numbers.
    """
    operations = node.target, counterpart
    try:
        formulas = {_tried(node, operation, "meta")[0] for operation in operations}
        if len(formulas) == 1:
            return True
        with torch.random.fork_rng(devices=[]):
            ours, theirs = (_tried(node, operation, "cpu")[1] for operation in operations)
    except RuntimeError:
        # It does not run on such operands; verification tells of a difference.
        return True
    return all(a is b or same(a, b) for a, b in zip(ours, theirs, strict=True))


def _tried(node: fx.Node, operation: Any, device: str) -> tuple[str, tuple[Any, ...]]:
    """The name of autograd's formula, and the gradients of the operands of one call."""
    leaves: list[Tensor] = []

    def drawn(operand: fx.Node) -> Any:
        value = without_data(operand.meta["val"])
        if not isinstance(value, Tensor):
            return value
        held = torch.zeros_like(value, device=device)
        if not is_floating(value):
            return held
        if device != "meta":
            held.normal_()
        leaves.append(held.requires_grad_())
        return held.clone()

    if device != "meta":
        torch.default_generator.manual_seed(0)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), drawn)
    with torch.enable_grad():
        result = operation(*args, **kwargs)
        if not isinstance(result, Tensor) or result.grad_fn is None:
            return "", ()
        found = torch.autograd.grad(result.sum(), leaves, allow_unused=True)
    return result.grad_fn.name(), found
