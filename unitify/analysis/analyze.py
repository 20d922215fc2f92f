"""Estimates by analysis: moments carried through the graph by the rules, without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unitify.analysis.backward import BackwardMoments
from unitify.analysis.forward import ForwardMoments, Step
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.diagnostics import EstimateFellBack
from unitify.estimates import Estimates, Rms
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Analysis:
    """Estimates and, for every value, the step that led to them in each direction.

    ``diagnostics``: operations whose moments were sampled or assumed, against what their rows say.
    """

    estimates: Estimates
    forward: Mapping[str, Step]
    backward: Mapping[str, tuple[Step, ...]]
    diagnostics: tuple[EstimateFellBack, ...] = ()


def analyze(
    capture: Capture,
    rules: RuleTable,
    loss_fn: LossFunction | None = None,
    weight_rms: float | None = None,
) -> Analysis:
    """Predict the RMS of every value of ``capture`` and of its gradient.

    ``weight_rms``: RMS of weight matrices that hold no data (meta device); the initializer's
    range of a Hugging Face config, else fan_in^-1/2, where None.
    """
    forward = ForwardMoments(capture, rules, weight_rms)
    backward, estimates = both_ways(forward, loss_fn)
    steps = {name: tuple(found) for name, found in backward.steps.items()}
    notes = fallen_back(forward, type(capture.model).__name__)
    return Analysis(estimates, forward.steps, steps, notes)


def fallen_back(forward: ForwardMoments, where: str) -> tuple[EstimateFellBack, ...]:
    """One finding for each operation, direction and way, with the number of its nodes."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in forward.fallbacks:
        found.setdefault((one.operation, one.direction, one.way), []).append(one.reason)
    return tuple(
        EstimateFellBack(
            where=where, operation=operation, direction=direction, way=way,
            count=len(reasons), reason=reasons[0],
        )
        for (operation, direction, way), reasons in found.items()
    )  # fmt: skip


def both_ways(
    forward: ForwardMoments, loss_fn: LossFunction | None = None
) -> tuple[BackwardMoments, Estimates]:
    """Run ``forward``, and moments of gradients back through it; the RMS that both find."""
    forward.run()
    backward = BackwardMoments(forward, loss_fn)
    backward.run()
    estimates = {
        node.name: Rms(forward.rms(node), backward.rms(node))
        for node in forward.capture.graph.nodes
        if is_scalable(node)
    }
    return backward, estimates
