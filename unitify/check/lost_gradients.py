"""Parameters that get no gradient, and the operations at which it ends.

A parameter whose gradient is predicted to be zero, though one arrives at an operation further on,
was cut off there: by a detachment, by rounding, by a comparison. A product with zeros (a branch
whose gain starts at zero) also hands back none, and will; it does not count. Nor does an operation
to which only a constant gradient is zero (a normalisation in front of a sum).
"""

from __future__ import annotations

from torch import Tensor, fx

from unitify.analysis.backward import BackwardMoments
from unitify.analysis.forward import ForwardMoments
from unitify.analysis.moments import Moment, gaussian
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.operations.laws import is_scalable
from unitify.operations.rule_table import RuleTable


def lost_gradients(
    capture: Capture, estimates: Estimates, rules: RuleTable
) -> dict[fx.Node, list[str]]:
    """Operation that lets no gradient through → the parameters that get none for it."""
    if not _cut_off(capture, estimates):
        return {}
    forward = ForwardMoments(capture, rules, None)
    forward.run()
    backward = _FromNormal(forward, None)
    backward.run()
    varied = {
        node.name: Rms(forward.rms(node), backward.rms(node))
        for node in capture.graph.nodes
        if is_scalable(node)
    }
    found: dict[fx.Node, list[str]] = {}
    for node in _cut_off(capture, varied):
        for stop in _stops(node, varied):
            found.setdefault(stop, []).append(str(node.target))
    return found


class _FromNormal(BackwardMoments):
    """Gradients start as independent normal numbers, so that nothing cancels by being constant."""

    def _unit(self, node: fx.Node) -> Moment:
        return gaussian(0.0, 1.0, node.meta["val"].dim())


def _cut_off(capture: Capture, estimates: Estimates) -> list[fx.Node]:
    """The trainable parameters without a gradient."""
    return [
        node
        for node in capture.graph.nodes
        if node.op == "get_attr"
        and str(node.target) in capture.aliases
        and _is_trained(capture.attribute(str(node.target)))
        and not estimates.get(node.name, Rms()).backward
    ]


def _is_trained(parameter: object) -> bool:
    return isinstance(parameter, Tensor) and parameter.requires_grad


def _stops(start: fx.Node, estimates: Estimates) -> list[fx.Node]:
    """Where gradients arrive, and go no further towards ``start``."""
    stops: dict[fx.Node, None] = {}
    pending, seen = [start], {start}
    while pending:
        for user in pending.pop().users:
            estimate = estimates.get(user.name, Rms())
            if estimate.backward:
                if estimate.forward:
                    stops[user] = None
            elif user not in seen and user.op != "output":
                seen.add(user)
                pending.append(user)
    return list(stops)
