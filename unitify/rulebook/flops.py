"""Floating-point operations of a contraction, counted from its shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from unitify.rulebook.dimensions import hint
from unitify.rulebook.operation import Operation


def flops(node: fx.Node) -> int:
    """FLOPs (multiplications and additions) of one forward call, at the example's sizes.

    ``torch.utils.flop_counter`` counts them: those of contractions only, masked elements included.
    """
    operation = Operation(node, {n: _number(n.meta.get("val")) for n in node.all_input_nodes})

    def shaped(operand: Any) -> Any:
        if isinstance(operand, list):
            return [shaped(o) for o in operand]
        # Of one type, as autocast makes them. The count does not depend on it.
        return torch.empty(operation.shape_of(operand), device="meta")

    operands = {name: shaped(operand) for name, operand in operation.operands.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        operation(operands)
    return int(counter.get_total_flops())


def _number(value: Any) -> Any:
    """The value of a number in the graph at the example's sizes; None for a tensor."""
    if isinstance(value, torch.SymInt | int):
        return hint(value)
    # Any other number is a dropout probability; the count does not depend on it.
    return None if isinstance(value, torch.Tensor) else 0.0
