"""Runs on inputs that are drawn, moved towards what a trained model states of its values.

What a trained operation keeps of a value (``analysis.stated``) counts more than what random inputs
make of it: a run moves the value to these moments, channel by channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from unitify.analysis.stated import stated_moments
from unitify.capture.whole import Capture
from unitify.noise.measured import Correction
from unitify.rulebook.rule_table import RuleTable


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
