"""Parameters that get no gradient, and the operation at which it stops.

A detachment, a rounding or a comparison stops a gradient. A candidate is an operation that receives
a gradient while a parameter behind it is predicted to get none. It is tried by itself: if it
returns no gradient for random operands and a random gradient, it stops all gradients. A gain that
starts at zero, or a normalization in front of a sum, passes this trial and is no finding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.rulebook.dimensions import hint, shape_of
from unitify.rulebook.operation import call_by_name
from unitify.rulebook.schema import named_arguments

#: The most elements of an operand with which an operation is tried.
_LARGEST = 2**24


def lost_gradients(
    capture: Capture, predicted: Estimates, measured: Estimates | None = None
) -> dict[fx.Node, list[str]]:
    """Operation that stops gradients → the parameters that get none because of it."""
    found: dict[fx.Node, list[str]] = {}
    tried: dict[tuple[fx.Node, fx.Node], bool] = {}
    for node in _without_gradient(capture, predicted, measured):
        stops = _stops(node, predicted)
        for stop in stops:
            if stop not in tried:
                tried[stop] = _lets_nothing_through(*stop)
        # One open way is enough: then the gradient is zero for another reason, or unknown.
        if all(tried[stop] for stop in stops):
            for operation in dict.fromkeys(operation for operation, _ in stops):
                found.setdefault(operation, []).append(str(node.target))
    return found


def _without_gradient(
    capture: Capture, predicted: Estimates, measured: Estimates | None
) -> list[fx.Node]:
    """The trainable parameters without a gradient, as predicted and, if measured, as measured."""
    return [
        node
        for node in capture.graph.nodes
        if node.op == "get_attr"
        and str(node.target) in capture.aliases
        and _is_trained(capture.attribute(str(node.target)))
        and not _gradient(predicted, node)
        and (measured is None or not _gradient(measured, node))
    ]


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
        if value.is_floating_point() or value.is_complex()
        else (noise > 0).to(value.dtype)
    )
    return drawn.setdefault(node, tensor)
