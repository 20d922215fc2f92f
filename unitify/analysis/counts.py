"""Counts that a rule's ``dims`` may name and that do not follow from shapes alone.

Each is a function of an ``Operation`` (its shapes, its numbers, the masks and indices of the
example) and the moments of its operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitify.analysis.moments import Moment
from unitify.rulebook.dimensions import hint
from unitify.rulebook.extremes import LIMIT
from unitify.rulebook.operation import Operation
from unitify.rulebook.schema import named_arguments

#: Queries are averaged within this many groups of neighbors: one number a query would make the
#: moments of an attention as large as its result.
_GROUPS = 8


def attended_keys(operation: Operation, operands: Mapping[str, Any]) -> Tensor:
    """The number of keys that an attention mask allows, by query: [queries, 1], or [1, 1].

    It is the harmonic mean over batches, heads and groups of queries, because uniform attention
    over k keys divides the variance by k.
    """
    queries, keys = operation.shape("query")[-2], operation.shape("key")[-2]
    mask = operation.number("attn_mask")
    moment = operands.get("attn_mask")
    if isinstance(moment, Moment) and "attn_mask" in operation.operands:
        mask = moment.mean > -LIMIT
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        allowed = mask.sum(-1) * (keys if mask.shape[-1] == 1 else 1)
    elif operation.number("is_causal"):
        allowed = torch.ones(queries, keys).tril().sum(-1)
    else:
        allowed = torch.full((1,), keys)
    counts = allowed.double().clamp_min(1.0)
    by_query = 1.0 / (1.0 / counts.reshape(-1, counts.shape[-1])).mean(0)
    size = math.ceil(len(by_query) / _GROUPS)
    groups = [(1.0 / (1.0 / g).mean()).expand(len(g)) for g in by_query.split(size)]
    return torch.cat(groups).unsqueeze(-1)


def overlaps(operation: Operation, _operands: Mapping[str, Any]) -> float:
    """Pairs (window position, tap) that fall on the image and not on its padding.

    For one channel of one image, over all spatial dimensions.
    """
    return math.prod(sum(w.inside(tap) for tap in range(w.kernel)) for w in _windows(operation))


def positions(operation: Operation, _operands: Mapping[str, Any]) -> float:
    """Positions of the window: the elements of one channel of a convolution's output."""
    return math.prod(w.positions for w in _windows(operation))


def pixels(operation: Operation, _operands: Mapping[str, Any]) -> float:
    """Pixels of the image over which the window moves, in one channel."""
    return math.prod(w.image for w in _windows(operation))


@dataclass(frozen=True)
class _Window:
    """One spatial dimension of an operation that moves a window over an image."""

    image: int
    positions: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    def inside(self, tap: int) -> int:
        """Positions at which this tap falls on the image: 0 ≤ position · stride − first < image."""
        first = self.padding - tap * self.dilation
        before, last = -(-first // self.stride), (self.image - 1 + first) // self.stride
        return max(min(last, self.positions - 1) - max(before, 0) + 1, 0)


def _windows(operation: Operation) -> list[_Window]:
    """Spatial dimensions of a convolution, a pool, an im2col or a col2im.

    The window of a transposed convolution moves over its output.
    """
    arguments = named_arguments(operation.node)
    first = next(iter(arguments))
    source, result = operation.shape(first), operation.result_shapes[0]
    kernel = arguments.get("kernel_size")
    if kernel is None:
        kernel = operation.shape("weight")[2:]
    count = len(kernel)
    stride = _each(arguments["stride"], count) or list(kernel)
    dilation = _each(arguments.get("dilation", 1), count)
    padding = arguments["padding"]
    if isinstance(padding, str):
        spare = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)
        ]
        before, total = [s // 2 for s in spare], spare
    else:
        before = _each(padding, count)
        total = [2 * p for p in before]
    writes = "output_size" in arguments or arguments.get(
        "transposed", "output_padding" in arguments
    )
    image = (result if writes else source)[-count:]
    if "weight" in arguments or ("kernel_size" in arguments and len(source) == len(result)):
        moved = list((source if writes else result)[-count:])
    else:
        moved = [
            (i + t - d * (k - 1) - 1) // s + 1
            for i, t, d, k, s in zip(image, total, dilation, kernel, stride, strict=True)
        ]
    columns = zip(image, moved, kernel, stride, before, dilation, strict=True)
    return [_Window(*(hint(n) for n in column)) for column in columns]


def _each(value: Any, count: int) -> list[Any]:
    """One number a spatial dimension, from a number or a list; an empty list stays empty."""
    if isinstance(value, list | tuple):
        return list(value) * count if len(value) == 1 else list(value)
    return [value] * count


def targets(operation: Operation, _operands: Mapping[str, Any]) -> float:
    """The number of class targets other than ``ignore_index``."""
    target = operation.number("target")
    if isinstance(target, Tensor) and not target.is_floating_point():
        return float((target != operation.number("ignore_index")).sum().clamp_min(1))
    return float(math.prod(operation.shape("target")))


#: Name in a rule file → the function that counts it.
COUNTS: dict[str, Callable[[Operation, Mapping[str, Any]], float | Tensor]] = {
    "attended_keys": attended_keys,
    "overlaps": overlaps,
    "pixels": pixels,
    "positions": positions,
    "targets": targets,
}
