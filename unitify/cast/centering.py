"""Centering: a product rounds how its operand deviates from the mean of each channel.

    f(x, w) + b   ─►   f(cast(x − mean), cast(w)) + b  +  f(mean, w)

A mean is constant, so its own product is one row, in the model's type. Weights' errors are then
multiplied by deviations alone, and the errors of x are as small as they. Takes a product and the
mean of its operand; says whether it can be taken apart so, and makes the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

import unitify.runtime  # noqa: F401  (registers unitify::center)
from unitify.formats.table import Format
from unitify.rulebook.centering import Centering, padding, reach
from unitify.rulebook.schema import named_arguments, set_argument

CENTER = torch.ops.unitify.center.default
UNCENTER = torch.ops.unitify.uncenter.default


def on_grid(mean: Tensor, format: Format) -> Tensor:
    """``mean`` rounded to the mantissa of a format, whatever its scale.

    A zero of the operand, as a rectifier leaves many, then deviates by what no cast rounds.
    """
    mantissa, exponent = torch.frexp(mean)
    steps = 2.0 ** (format.mantissa_bits + 1)
    return torch.ldexp((mantissa * steps).round() / steps, exponent)


def unpad(product: fx.Node, how: Centering) -> list[int]:
    """Take the padding out of ``product``; returns it as ``torch.nn.functional.pad`` wants it."""
    if not how.padding:
        return []
    each = padding(how, product)
    set_argument(product, how.padding, [0] * len(each))
    return [p for p in reversed(each) for _ in range(2)] if any(each) else []


def deviation(graph: fx.Graph, operand: fx.Node, mean: fx.Node, pads: list[int]) -> fx.Node:
    """The operand's deviation, still to be cast."""
    made = graph.call_function(CENTER, (operand, mean, pads))
    made.meta = {**operand.meta, "val": F.pad(operand.meta["val"], pads)}
    return made


def offset(graph: fx.Graph, product: fx.Node, how: Centering, mean: fx.Node) -> fx.Node:
    """What ``product``, its padding taken out, makes of the mean, without its bias."""
    arguments = named_arguments(product)
    operand, weight = arguments[how.operand], arguments[how.weight]
    # Not a name that an operation of the model may have.
    name = f"offset_of_{product.name}"
    if not how.padding:
        by = torch.ops.aten.linear if how.is_transposed else torch.ops.aten.matmul
        return graph.create_node("call_function", by.default, (mean, weight), name=name)
    window = [1, -1, *reach(how, product)]
    expand = torch.ops.aten.expand.default
    row = graph.create_node("call_function", expand, (mean, window), name=f"{name}_row")
    args, kwargs = fx.node.map_arg(
        (product.args, product.kwargs), lambda n: row if n is operand else n
    )
    made = graph.create_node("call_function", product.target, args, kwargs, name=name)
    for own, argument in arguments.items():
        if own not in (how.operand, how.weight) and isinstance(argument, fx.Node):
            set_argument(made, own, None)
    return made


def stored_mean(how: Centering, product: fx.Node, mean: Sequence[float], scale: int) -> Tensor:
    """The buffer for ``product``: a mean at true scale in units of 2^``scale``, laid along x."""
    operand = named_arguments(product)[how.operand].meta["val"]
    shape = [-1] if how.axis == -1 else [1, -1, *[1] * (operand.dim() - 2)]
    held = torch.tensor(mean, dtype=torch.float64) * math.ldexp(1.0, -scale)
    return held.to(operand.dtype).reshape(shape)
