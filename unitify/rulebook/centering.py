"""A contraction split at the mean of an operand: f(x, w) = f(x − mean, w) + f(mean, w).

Takes the node of a contraction and its rule. Gives the operand that has a mean, its axis, and
f(mean, w), which is one row. An image is padded before it is centered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx

from unitify.rulebook.dimensions import shape_of
from unitify.rulebook.operation import call_by_name
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.schema import listed, named_arguments


@dataclass(frozen=True)
class Centering:
    """How a contraction is split.

    ``operand``, ``weight``: names of arguments; ``axis``: the operand's channels. For matrices,
    ``is_transposed``: is the weight [N, K]? For an image, ``padding``: the argument that holds the
    padding; "" for matrices.
    """

    operand: str
    weight: str
    axis: int
    is_transposed: bool = False
    padding: str = ""


def centering(rule: Rule, node: fx.Node) -> Centering | None:
    """How to split ``node``; None where it cannot be split."""
    arguments = named_arguments(node)
    if rule.matmul is not None:
        matmul = rule.matmul
        found = Centering(matmul.left, matmul.right, -1, matmul.is_transposed)
        ranks = _rank(arguments[found.operand]), _rank(arguments[found.weight])
        return found if ranks[0] >= 2 and ranks[1] == 2 else None
    if not rule.pads or not all(isinstance(p, int) for p in listed(arguments[rule.pads])):
        return None
    operand, weight = rule.linear
    found = Centering(operand, weight, 1, padding=rule.pads)
    # The channels of an image without a batch are dimension 0.
    is_batched = _rank(arguments[found.operand]) == _rank(arguments[found.weight])
    return found if is_batched else None


def padding(how: Centering, node: fx.Node) -> list[int]:
    """The padding of ``node``: zeros before and after each dimension of an image."""
    if not how.padding:
        return []
    arguments = named_arguments(node)
    return _spread(listed(arguments[how.padding]), _rank(arguments[how.weight]) - 2)


def reach(how: Centering, node: fx.Node) -> list[int]:
    """The extent of the window of ``node`` in each dimension of an image, in pixels."""
    arguments = named_arguments(node)
    taps = shape_of(arguments[how.weight].meta["val"])[2:]
    dilation = _spread(listed(arguments.get("dilation", 1)), len(taps))
    return [d * (t - 1) + 1 for d, t in zip(dilation, taps, strict=True)]


def row(
    how: Centering, node: fx.Node, arguments: Mapping[str, Any], mean: Tensor, weight: Tensor
) -> Tensor:
    """f(mean, weight) of ``node`` without its bias. ``arguments``: those of the call."""
    if not how.padding:
        return F.linear(mean, weight if how.is_transposed else weight.t())
    image = mean.reshape(1, -1, *[1] * (weight.dim() - 2)).expand(1, -1, *reach(how, node))
    given = {n: None if isinstance(a, Tensor) else a for n, a in arguments.items()}
    given |= {how.operand: image, how.weight: weight, how.padding: [0] * (weight.dim() - 2)}
    result: Tensor = call_by_name(node, given)
    return result


def _spread(values: list[Any], count: int) -> list[Any]:
    return values * count if len(values) == 1 else values


def _rank(argument: Any) -> int:
    return argument.meta["val"].dim() if isinstance(argument, fx.Node) else 0
