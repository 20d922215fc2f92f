"""Runs on drawn inputs, corrected by the running statistics of a trained model.

A batch norm keeps the mean and variance that its input has on real data. A run on random inputs
moves the value to these moments, channel by channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from unitify.analysis.running_statistics import running_statistics
from unitify.capture.whole import Capture
from unitify.noise.measured import Correction
from unitify.rulebook.rule_table import RuleTable


def toward_running_statistics(capture: Capture, rules: RuleTable) -> Correction:
    """Moves a value that has running statistics to their mean and variance."""
    known = {node: moment for node, (_, moment) in running_statistics(capture, rules).items()}

    def correct(node: fx.Node, value: Tensor) -> Tensor:
        if node not in known:
            return value
        moment = known[node]
        pooled = [d for d in range(value.dim()) if moment.mean.shape[d] == 1]
        mean = value.mean(pooled, keepdim=True)
        std = value.std(pooled, keepdim=True, correction=0)
        unit = (value - mean) / std.clamp_min(torch.finfo(value.dtype).tiny)
        return (unit * moment.var.sqrt() + moment.mean).to(value.dtype)

    return correct
