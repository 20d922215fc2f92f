"""Mean subtraction: a contraction rounds the deviation of its operand from the channels' means.

    f(x, w) + b   ─►   f(cast(x − mean), cast(w)) + b  +  f(mean, w)

A mean is constant. So its own contraction is one row, in the model's type. The errors of weights
then meet deviations alone, and the errors of x are as small as these. Takes a contraction and the
mean of its operand; makes the nodes.
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
    """``mean`` rounded to the mantissa of a format, at its own scale.

    A rectifier leaves many zeros. The deviation of a zero is then exact in the format.
    """
    mantissa, exponent = torch.frexp(mean)
    steps = 2.0 ** (format.mantissa_bits + 1)
    return torch.ldexp((mantissa * steps).round() / steps, exponent)


def unpad(contraction: fx.Node, how: Centering) -> list[int]:
    """Take the padding off ``contraction``. Returns it in the form of ``functional.pad``."""
    if not how.padding:
        return []
    each = padding(how, contraction)
    set_argument(contraction, how.padding, [0] * len(each))
    return [p for p in reversed(each) for _ in range(2)] if any(each) else []


def deviation(graph: fx.Graph, operand: fx.Node, mean: fx.Node, pads: list[int]) -> fx.Node:
    """The deviation of the operand, before its cast."""
    made = graph.call_function(CENTER, (operand, mean, pads))
    made.meta = {**operand.meta, "val": F.pad(operand.meta["val"], pads)}
    return made


def offset(graph: fx.Graph, contraction: fx.Node, how: Centering, mean: fx.Node) -> fx.Node:
    """The contraction of the mean, without bias and padding."""
    arguments = named_arguments(contraction)
    operand, weight = arguments[how.operand], arguments[how.weight]
    # Not a name that an operation of the model may have.
    name = f"offset_of_{contraction.name}"
    if not how.padding:
        by = torch.ops.aten.linear if how.is_transposed else torch.ops.aten.matmul
        return graph.create_node("call_function", by.default, (mean, weight), name=name)
    window = [1, -1, *reach(how, contraction)]
    expand = torch.ops.aten.expand.default
    row = graph.create_node("call_function", expand, (mean, window), name=f"{name}_row")
    args, kwargs = fx.node.map_arg(
        (contraction.args, contraction.kwargs), lambda n: row if n is operand else n
    )
    made = graph.create_node("call_function", contraction.target, args, kwargs, name=name)
    for own, argument in arguments.items():
        if own not in (how.operand, how.weight) and isinstance(argument, fx.Node):
            set_argument(made, own, None)
    return made


def stored_mean(how: Centering, contraction: fx.Node, mean: Sequence[float], scale: int) -> Tensor:
    """The buffer for the mean, in units of 2^``scale``, in a shape that broadcasts to x."""
    operand = named_arguments(contraction)[how.operand].meta["val"]
    shape = [-1] if how.axis == -1 else [1, -1, *[1] * (operand.dim() - 2)]
    held = torch.tensor(mean, dtype=torch.float64) * math.ldexp(1.0, -scale)
    return held.to(operand.dtype).reshape(shape)
