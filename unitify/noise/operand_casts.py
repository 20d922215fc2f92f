"""Which operand is cast at which true scale, for the products that a recipe casts.

The bridge from a plan to runs with casts: takes formats by operation, gives ``OperandCast`` by
place. A product's operand is cast where it is near unit RMS, be it stored there or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from unitify.capture.whole import Capture
from unitify.formats.table import FORMATS, Format, quantize
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.choices import Choice
from unitify.rulebook.centering import Centering, centering
from unitify.rulebook.products import contracted, product_operands
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name

#: Which operand is cast: the operation's name, the argument's, and the index among its tensors.
Place = tuple[str, str, int]


@dataclass(frozen=True)
class OperandCast:
    """An operand x is replaced by mean + scale · Q((x − mean) / scale), all at true scale.

    ``mean``: one number a channel, for a product taken apart as ``centering`` says; empty for none.
    Weights are then rounded where they meet the deviation, and not where they meet the mean.
    ``axis``: the dimension along which the blocks of a format lie.
    """

    format: Format
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    centering: Centering | None = None
    axis: int = -1

    def laid(self, ndim: int) -> Tensor | float:
        """The mean, so that it broadcasts to an operand of this rank."""
        if self.centering is None:
            return 0.0
        shape = [1] * ndim
        shape[self.centering.axis] = -1
        return torch.tensor(self.mean, dtype=torch.float64).reshape(shape)

    def rounded(self, x: Tensor) -> Tensor:
        """What the cast makes of an operand."""
        mean = self.laid(x.dim())
        mean = mean.to(x.dtype) if isinstance(mean, Tensor) else mean
        rounded = quantize((x - mean) / self.scale, self.format, axis=self.axis)
        return mean + rounded * self.scale


def operand_casts(
    choices: Iterable[Choice], capture: Capture, plan: ScalePlan, rules: RuleTable
) -> dict[Place, OperandCast]:
    """The casts of operands that ``choices`` make, with their headroom and means."""
    cast = {c.value: c for c in choices if c.is_product and c.forward}
    found: dict[Place, OperandCast] = {}
    for node in capture.graph.nodes:
        if node.name not in cast:
            continue
        choice, rule = cast[node.name], rules[operation_name(node)]
        how = centering(rule, node) if choice.mean else None
        operands = product_operands(rule, node)
        headroom = choice.exponents or (0,) * len(operands)
        for (name, index, operand), extra in zip(operands, headroom, strict=False):
            scale = math.ldexp(1.0, plan.unit(operand.name).exponents[0] + extra)
            is_centered = how is not None and name == how.operand
            found[node.name, name, index] = OperandCast(
                FORMATS[choice.forward],
                scale,
                choice.mean if is_centered else (),
                how if is_centered else None,
                contracted(rule, node, name, operand),
            )
    return found
