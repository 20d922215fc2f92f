"""Parameters, or parts of them, that get no gradient, and the operation at which it stops.

A detachment, a rounding or a comparison stops a gradient. A candidate is an operation that receives
a gradient while a parameter behind it is predicted to get none. It is tried by itself: if it
returns no gradient for random operands and a random gradient, it stops all gradients. A gain that
starts at zero, or a normalization in front of a sum, passes this trial and is no finding.

A fused projection (query, key and value in one weight) may lose the gradient of a piece of its
result alone: the rows of the weight that make the piece get none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.rulebook.dimensions import hint, is_floating, shape_of
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.operation import call_by_name
from unitify.rulebook.schema import named_arguments

#: The most elements of an operand with which an operation is tried.
_LARGEST = 2**24


@dataclass(frozen=True)
class Losing:
    """A parameter, by its name in the graph, that gets no gradient; ``is_part``: some of it."""

    parameter: str
    is_part: bool


def lost_gradients(
    capture: Capture, predicted: Estimates, measured: Estimates | None = None
) -> dict[fx.Node, list[Losing]]:
    """Operation that stops gradients → the parameters that get none because of it."""
    found: dict[fx.Node, dict[Losing, None]] = {}
    tried: dict[tuple[fx.Node, fx.Node], bool] = {}
    for node, losing in _without_gradient(capture, predicted, measured):
        stops = _stops(node, predicted)
        for stop in stops:
            if stop not in tried:
                tried[stop] = _lets_nothing_through(*stop)
        # One open way is enough: then the gradient is zero for another reason, or unknown.
        if all(tried[stop] for stop in stops):
            for operation, _ in stops:
                found.setdefault(operation, {})[losing] = None
    return {operation: list(losing) for operation, losing in found.items()}


def _without_gradient(
    capture: Capture, predicted: Estimates, measured: Estimates | None
) -> Iterator[tuple[fx.Node, Losing]]:
    """Nodes without a gradient, as predicted and, if measured, as measured; whose it would be.

    They are trainable parameters, and pieces of results that are made with some.
    """

    def has_none(node: fx.Node) -> bool:
        is_measured = measured is not None and _gradient(measured, node)
        return not (_gradient(predicted, node) or is_measured)

    trained = [
        node
        for node in capture.graph.nodes
        if node.op == "get_attr"
        and str(node.target) in capture.aliases
        and _is_trained(capture.attribute(str(node.target)))
    ]
    for node in trained:
        if has_none(node):
            yield node, Losing(str(node.target), is_part=False)
            continue
        for result in node.users:
            for piece in _pieces(result) if not has_none(result) else ():
                if has_none(piece):
                    yield piece, Losing(str(node.target), is_part=True)


def _pieces(result: fx.Node) -> Iterator[fx.Node]:
    """Views of some elements of ``result``, also of a view of all of them."""
    for user in result.users:
        if not _is_view(user):
            continue
        are_tensors = is_scalable(result) and is_scalable(user)
        if is_scalable(user) and not (are_tensors and _elements(user) == _elements(result)):
            yield user
        else:
            yield from _pieces(user)


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    returns = node.target._schema.returns if isinstance(node.target, OpOverload) else ()
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _elements(node: fx.Node) -> int:
    return math.prod(map(hint, node.meta["val"].shape))


def _is_trained(parameter: object) -> bool:
    return isinstance(parameter, Tensor) and parameter.requires_grad


def _gradient(estimates: Estimates, node: fx.Node) -> float | None:
    return estimates.get(node.name, Rms()).backward


def _stops(start: fx.Node, estimates: Estimates) -> list[tuple[fx.Node, fx.Node]]:
    """Operations, with the operand, that receive a gradient and pass none on to ``start``."""
    stops: dict[tuple[fx.Node, fx.Node], None] = {}
    pending, seen = [start], {start}
    while pending:
        operand = pending.pop()
        for user in operand.users:
            if _gradient(estimates, user):
                stops[user, operand] = None
            elif user not in seen and user.op != "output":
                seen.add(user)
                pending.append(user)
    return list(stops)


@torch.enable_grad()
def _lets_nothing_through(node: fx.Node, operand: fx.Node) -> bool:
    """Is the gradient of an operand missing or zero for any operands?"""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[fx.Node, Tensor] = {}
    try:
        arguments = {
            name: fx.node.map_arg(argument, lambda n: _drawn(n, drawn, generator))
            for name, argument in named_arguments(node).items()
        }
        result = call_by_name(node, arguments)
        results = result if isinstance(result, list | tuple) else [result]
        starts = [r for r in results if isinstance(r, Tensor) and r.requires_grad]
        if not starts:
            return True
        upstream = [torch.randn_like(r) for r in starts]
        (gradient,) = torch.autograd.grad(starts, drawn[operand], upstream, allow_unused=True)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError):
        return True  # It cannot be tried by itself: what was predicted stands.
    return gradient is None or not bool(gradient.any())


def _drawn(node: fx.Node, drawn: dict[fx.Node, Tensor], generator: torch.Generator) -> Any:
    """A random operand in place of a node: normal, or zeros and ones."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return hint(value) if isinstance(value, torch.SymInt) else value
    shape = shape_of(value)
    if torch.Size(shape).numel() > _LARGEST:
        raise ValueError("too large to be tried")
    noise = torch.randn(shape, generator=generator)
    tensor = (
        noise.to(value.dtype).requires_grad_()
        if is_floating(value)
        else (noise > 0).to(value.dtype)
    )
    return drawn.setdefault(node, tensor)
