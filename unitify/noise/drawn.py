"""Signal to noise at every value with no data: the captured graph run on drawn inputs.

Carried from operation to operation (``predict``), errors lose what they have in common: that of a
norm's input and of its statistics, of neighbours in a convolution, of layers trained on each other.
A run keeps all that. What a trained operation states of a value (``analysis.stated``) counts more
than what random inputs make of it: the value is moved to these moments, channel by channel.
Weights must hold data. Who adds how much only ``budget`` tells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from unitify.analysis.stated import stated_moments
from unitify.capture.whole import Capture
from unitify.noise.cast_error import OperandCast
from unitify.noise.drawn_inputs import drawn_inputs
from unitify.noise.measured import Correction, measured_noise
from unitify.noise.moments import Place
from unitify.noise.predict import ValueNoise
from unitify.operations.rule_table import RuleTable

#: How often inputs are drawn.
DRAWS = 2


def drawn_noise(
    capture: Capture, rules: RuleTable, casts: Mapping[Place, OperandCast], draws: int = DRAWS
) -> dict[str, ValueNoise]:
    """RMS of every floating value and of the error that ``casts`` leave in it, by name."""
    correct = toward_stated(capture, rules)
    runs = [
        measured_noise(capture, casts, drawn_inputs(capture, rules, seed), seed, correct)
        for seed in range(draws)
    ]
    return {
        name: ValueNoise(
            math.sqrt(math.fsum(run[name].signal ** 2 for run in runs) / draws),
            math.sqrt(math.fsum(run[name].error ** 2 for run in runs) / draws),
            value.elements,
        )
        for name, value in runs[0].items()
    }


def toward_stated(capture: Capture, rules: RuleTable) -> Correction:
    """Moves a value whose moments are stated to these, where each has elements enough to tell."""
    stated = {node: moment for node, (_, moment) in stated_moments(capture, rules).items()}

    def correct(node: fx.Node, value: Tensor) -> Tensor:
        if node not in stated:
            return value
        told = stated[node]
        pooled = [d for d in range(value.dim()) if told.mean.shape[d] == 1]
        mean = value.mean(pooled, keepdim=True)
        std = value.std(pooled, keepdim=True, correction=0)
        unit = (value - mean) / std.clamp_min(torch.finfo(value.dtype).tiny)
        return (unit * told.var.sqrt() + told.mean).to(value.dtype)

    return correct
