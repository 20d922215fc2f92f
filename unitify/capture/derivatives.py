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
        with torch.random.fork_rng(devices=[]):
            made = [_called(node, operation, "meta")[0] for operation in operations]
            if len(set(map(_formula, made))) == 1:
                return True
            ours, theirs = (_gradients(*_called(node, op, "cpu")) for op in operations)
    except RuntimeError:
        # It does not run on such operands; verification tells of a difference.
        return True
    return all(a is b or same(a, b) for a, b in zip(ours, theirs, strict=True))


def _called(node: fx.Node, operation: Any, device: str) -> tuple[Any, list[Tensor]]:
    """The result of one call, and the leaves behind its operands."""
    leaves: list[Tensor] = []

    def drawn(operand: fx.Node) -> Any:
        value = without_data(operand.meta["val"])
        if not isinstance(value, Tensor):
            return value
        held = torch.zeros_like(value, device=device)
        if not is_floating(value):
            return held
        leaves.append(held.normal_().requires_grad_())
        return leaves[-1].clone()

    torch.default_generator.manual_seed(0)
    with torch.enable_grad():
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), drawn)
        return operation(*args, **kwargs), leaves


def _formula(result: Any) -> str:
    """autograd's name of what computed ``result``; "" for nothing, or several results."""
    function = getattr(result, "grad_fn", None)
    return "" if function is None else function.name()


def _gradients(result: Tensor, leaves: list[Tensor]) -> tuple[Any, ...]:
    return torch.autograd.grad(result.sum(), leaves, allow_unused=True)
