"""A smaller image for an operation that moves a window over one whose pixels are all alike.

Takes an operation and the moments of its operands. Gives the same operation on a smaller image,
whose cost does not depend on the size of the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from unitify.analysis.moments import Moment
from unitify.rulebook.operation import Operation
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import named_arguments

#: A larger image is cut to this size, to twice what the window reaches, or to what makes ``_LEAST``
#: pixels of the result: most pixels lie inside.
_EXTENT, _LEAST = 16, 4


@dataclass(frozen=True)
class SmallImage(Operation):
    """An operation whose operand ``image`` has another shape, as have results that follow it."""

    image: str
    sizes: tuple[int, ...]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor operand; for the image, that of the smaller one."""
        return self.sizes if name == self.image else super().shape(name)

    def __call__(self, replaced: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """Run the operation; sizes that its arguments ask for shrink with the image."""
        if named_arguments(self.node).get("output_size") is not None:
            whole, result = super().shape(self.image), self.result_shapes[0]
            sizes = zip(self.sizes, result, whole, strict=True)
            replaced = {**replaced, "output_size": [round(s * r / w) for s, r, w in sizes][2:]}
        return super().__call__(replaced)

    def left_out(self, result: tuple[int, ...]) -> float:
        """Pixels of the whole result for each pixel of this smaller one."""
        return math.prod(self.result_shapes[0][2:]) / math.prod(result[2:])


def on_small_image(
    operation: Operation,
    rule: Rule | None,
    operands: Mapping[str, Any],
    others: Sequence[Moment] = (),
) -> Operation:
    """The operation on a smaller image, cut along dimensions in which all pixels are alike.

    ``others``: moments of its result that must be alike there, too.
    """
    if rule is None or not rule.window or len(operation.result_shapes) > 1:
        return operation
    image = next(iter(rule.linear or operation.operands))
    moment, shape, result = operands[image], operation.shape(image), operation.result_shapes[0]
    if not isinstance(moment, Moment):
        return operation
    sizes, alike = list(shape), (moment, *others)
    for dimension in range(2, len(shape)):
        per_result = math.ceil(_LEAST * shape[dimension] / result[dimension])
        extent = max(_EXTENT, 2 * _reach(operation), per_result)
        if all(m.mean.shape[dimension] == m.square.shape[dimension] == 1 for m in alike):
            sizes[dimension] = min(shape[dimension], extent)
    if tuple(sizes) == shape:
        return operation
    return SmallImage(operation.node, operation.known, image, tuple(sizes))


def _reach(operation: Operation) -> int:
    """Pixels that the window covers, or twice the padding, where that is more."""
    given: dict[str, Any] = {
        name: operation.number(name)
        for name in ("kernel_size", "dilation", "padding")
        if name in named_arguments(operation.node)
    }
    if "weight" in operation.operands:
        given["kernel_size"] = operation.shape("weight")[2:]
    taps, spread, padding = (
        _largest(given.get(n), least)
        for n, least in (("kernel_size", 1), ("dilation", 1), ("padding", 0))
    )
    return max(taps * spread, 2 * padding)


def _largest(value: Any, least: int) -> int:
    """The largest of one number a dimension; ``least`` for a word or none."""
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((n for n in numbers if isinstance(n, int)), default=least)
