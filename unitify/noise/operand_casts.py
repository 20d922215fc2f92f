"""The casts of operands as functions of tensors, for runs of a captured graph.

A ``Cast`` names a format, and an exponent beside a unit of the plan. An ``OperandCast`` has the
format itself, and the scale at which it rounds true values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unitify.formats.table import FORMATS, Format, quantize
from unitify.part import Part
from unitify.recipe.cast import Place
from unitify.rulebook.centering import Centering, centering
from unitify.rulebook.contractions import contracted, contraction_operands
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import operation_name


@dataclass(frozen=True)
class OperandCast:
    """An operand x is replaced by mean + scale · Q((x − mean) / scale), all at true scale.

    ``mean``: one number a channel; empty for none. The contraction is then split as ``centering``
    says: the deviation meets the rounded weight, the mean meets the exact one.
    ``axis``: the dimension along which the blocks of a format lie.
    """

    format: Format
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    centering: Centering | None = None
    axis: int = -1

    def laid(self, ndim: int) -> Tensor | float:
        """The mean in a shape that broadcasts to an operand of this rank."""
        if self.centering is None:
            return 0.0
        shape = [1] * ndim
        shape[self.centering.axis] = -1
        return torch.tensor(self.mean, dtype=torch.float64).reshape(shape)

    def rounded(self, x: Tensor) -> Tensor:
        """The operand after the cast."""
        mean = self.laid(x.dim())
        mean = mean.to(x.dtype) if isinstance(mean, Tensor) else mean
        rounded = quantize((x - mean) / self.scale, self.format, axis=self.axis)
        return mean + rounded * self.scale


def operand_casts(part: Part, rules: RuleTable) -> dict[Place, OperandCast]:
    """The casts of operands in the choices of ``part``, by place."""
    casts = {cast.place: cast for cast in part.casts() if not cast.is_gradient}
    found: dict[Place, OperandCast] = {}
    for node in part.capture.graph.nodes:
        rule = rules.get(operation_name(node))
        if rule is None:
            continue
        for name, index, operand in contraction_operands(rule, node):
            place = node.name, name, index
            if place not in casts:
                continue
            cast = casts[place]
            found[place] = OperandCast(
                FORMATS[cast.format],
                math.ldexp(1.0, part.exponent(cast)),
                cast.mean,
                centering(rule, node) if cast.mean else None,
                contracted(rule, node, name, operand),
            )
    return found
