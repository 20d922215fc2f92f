"""Signal to noise at every value of a graph, predicted with no data.

Takes a capture and what is cast where; gives ``Noise``: per value the RMS of signal and error, and
how errors come about, of which ``budget`` tells who adds how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from unitify.analysis.forward import ForwardMoments
from unitify.capture.whole import Capture
from unitify.formats.signal_to_noise import decibels
from unitify.noise.cast_error import OperandCast
from unitify.noise.moments import NoiseMoments, Place, Step
from unitify.operations.laws import is_scalable
from unitify.operations.operation import Operation
from unitify.operations.rule_table import RuleTable
from unitify.operations.schema import nodes_of


@dataclass(frozen=True)
class ValueNoise:
    """RMS of a value and of its error, at true scale; ``elements``: how many there are."""

    signal: float
    error: float
    elements: int = 1

    @property
    def relative(self) -> float:
        """Mean square of the error over that of the value."""
        if not self.error:
            return 0.0
        return (self.error / self.signal) ** 2 if self.signal else math.inf

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise in decibels; infinite without error."""
        return decibels(self.relative)


@dataclass(frozen=True)
class Noise:
    """The error of every floating value, by name; the steps that led there; the model's outputs."""

    values: Mapping[str, ValueNoise]
    steps: Mapping[str, Step]
    outputs: tuple[str, ...]


def predict_noise(
    capture: Capture,
    rules: RuleTable,
    casts: Mapping[Place, OperandCast],
    forward: ForwardMoments | None = None,
) -> Noise:
    """What ``casts`` leave of every value.

    ``casts``: (operation, argument, index) → the cast of that operand. ``forward``: moments of the
    values, where they have been computed before.
    """
    if forward is None:
        forward = ForwardMoments(capture, rules, None)
        forward.run()
    noise = NoiseMoments(forward, casts)
    noise.run()
    values = {
        node.name: ValueNoise(
            forward.rms(node) or 0.0, noise.rms(node), math.prod(Operation.shape_of(node))
        )
        for node in capture.graph.nodes
        if is_scalable(node)
    }
    return Noise(values, noise.steps, output_names(capture.graph))


def output_names(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the floating values that a graph returns."""
    output = next(reversed(graph.nodes))
    return tuple(dict.fromkeys(n.name for n in nodes_of(output.args) if is_scalable(n)))
