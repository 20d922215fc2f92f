"""Parameters that are zero at the start, and the numbers that stand for them in a second run.

A zero head, the second factor of LoRA or the zero gain of a residual branch passes no gradient
back, so that a run tells nothing of the scales there. After one step of training it is not zero. A
gain smaller than that step (1e-6 in front of a residual branch) is as good as zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unitify.capture.execution import leaf_parameters
from unitify.capture.whole import Capture
from unitify.estimates import Estimates, Rms
from unitify.rulebook.rule_table import RuleTable
from unitify.rulebook.schema import named_arguments, operation_name

#: What a first step of Adam adds to each number at a usual rate. Trained, a matrix has an RMS near
#: fan_in^-1/2, and a gain one near 1. Numbers of the RMS midway, in octaves, stand for both.
FIRST_STEP = 1e-4
#: The figures of the second run hold where they are so many times those of the first.
_GROWN = 16.0


def begun(capture: Capture, measured: Estimates, rules: RuleTable) -> dict[str, Tensor]:
    """Numbers for trainable parameters that are zero, and small gains, by name; none for biases.

    A bias that is zero passes every gradient on.
    """
    leaves = leaf_parameters(capture)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for node in capture.graph.nodes:
        leaf = leaves.get(str(node.target)) if node.op == "get_attr" else None
        held = measured.get(node.name, Rms()).forward
        if leaf is None or not leaf.requires_grad or held is None or not held < FIRST_STEP:
            continue
        uses = [
            (user, rules.get(operation_name(user))) for user in node.users if user.op != "output"
        ]
        roles = {
            rule.parameters.get(name, "") if rule is not None else ""
            for user, rule in uses
            for name, argument in named_arguments(user).items()
            if argument is node
        }
        if roles == {"bias"} or (held and "gain" not in roles):
            continue
        fan_in = math.prod(leaf.shape[1:]) if leaf.dim() > 1 else 1
        rms = math.sqrt(FIRST_STEP * max(fan_in, 1) ** -0.5)
        drawn = torch.randn(leaf.shape, generator=generator) * rms
        found[str(node.target)] = drawn.to(leaf.device, leaf.dtype).requires_grad_()
    return found


def completed(measured: Estimates, second: Estimates) -> Estimates:
    """``measured``, with the figures of a ``second`` run where these are far larger."""
    return {
        name: Rms(_chosen(rms.forward, other.forward), _chosen(rms.backward, other.backward))
        for (name, rms), other in zip(measured.items(), second.values(), strict=True)
    }


def _chosen(first: float | None, second: float | None) -> float | None:
    return second if (second or 0.0) > _GROWN * (first or 0.0) else first
