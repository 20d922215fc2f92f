"""Moments of every value as one batch shows them, for the analysis of noise with data.

A value that was seen is known element by element, so that ``noise`` then is the casts' error
linearised at that batch: exact derivatives, and rounding errors of the very numbers. What is too
large for that is averaged along the dimensions in which it differs least: predictions are then
rougher, and may be worse than those without data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from unitify.analysis.forward import ForwardMoments
from unitify.analysis.moments import exactly, limited
from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.operations.rule_table import RuleTable

#: Numbers that are kept of all values of a graph together.
MEMORY = 2**26


def measured_moments(
    capture: Capture,
    rules: RuleTable,
    inputs: list[Any] | None = None,
    seed: int = 0,
) -> ForwardMoments:
    """What ``ForwardMoments`` predicts, replaced by what one run of the captured graph shows.

    ``inputs``: flat ones; the capture's own example where None.
    """
    forward = ForwardMoments(capture, rules, None)
    forward.run()
    forward.elements = elements = MEMORY // max(len(capture.graph.nodes), 1)

    def observe(node: fx.Node, value: Any) -> None:
        if node in forward.moments:
            results = value if isinstance(value, list | tuple) else [value]
            forward.moments[node] = [
                limited(exactly(r), elements)
                if isinstance(r, Tensor) and r.is_floating_point()
                else None
                for r in results
            ]

    given = list(capture.example) if inputs is None else inputs
    with torch.no_grad(), unchanged(capture.model, seed):
        GraphRunner(capture.graph, capture.attribute, observe).run(*given)
    return forward
