"""Estimates by analysis: the rules propagate moments through the graph, without data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unitify.analysis.backward import BackwardMoments
from unitify.analysis.forward import Derivation, ForwardMoments
from unitify.capture.execution import LossFunction
from unitify.capture.whole import Capture
from unitify.diagnostics import EstimateFellBack
from unitify.estimates import Estimates, Rms
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable


@dataclass(frozen=True)
class Analysis:
    """Estimates, and the step that gave each of them, in both directions.

    ``diagnostics``: operations whose moments were sampled or assumed although they have a row.
    """

    estimates: Estimates
    forward: Mapping[str, Derivation]
    backward: Mapping[str, tuple[Derivation, ...]]
    diagnostics: tuple[EstimateFellBack, ...] = ()


def analyze(
    capture: Capture,
    rules: RuleTable,
    loss_fn: LossFunction | None = None,
    weight_rms: float | None = None,
) -> Analysis:
    """Predict the RMS of every value of ``capture`` and of its gradient.

    ``weight_rms``: RMS of weight matrices without data (meta device). None takes the
    ``initializer_range`` of a Hugging Face config, else fan_in^-1/2.
    """
    forward = ForwardMoments(capture, rules, weight_rms)
    backward, estimates = both_ways(forward, loss_fn)
    steps = {name: tuple(found) for name, found in backward.steps.items()}
    notes = fallen_back(forward, type(capture.model).__name__)
    return Analysis(estimates, forward.steps, steps, notes)


def fallen_back(forward: ForwardMoments, where: str) -> tuple[EstimateFellBack, ...]:
    """One diagnostic for each operation, direction and way, with the number of its nodes."""
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
    """Predict moments forward, then those of gradients backward. Gives the RMS of both, too."""
    forward.run()
    backward = BackwardMoments(forward, loss_fn)
    backward.run()
    estimates = {
        node.name: Rms(forward.rms(node), backward.rms(node))
        for node in forward.capture.graph.nodes
        if is_scalable(node)
    }
    return backward, estimates
