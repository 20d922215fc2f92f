"""What every row of the rule table makes of an error of its operands, against sampling.

Operands are drawn as the row's sample declares, and again with a millionth of independent noise;
the mean square of what that changes in the results must agree with the prediction within four
standard errors.
"""

from __future__ import annotations

import math

import pytest
import torch
from test_rule_moments import PREDICTED, RULES
from torch import Tensor

from unitify.analysis.moments import gaussian
from unitify.noise.moments import NoiseMoments
from unitify.rulebook import calls
from unitify.rulebook.moments import Declared, declared

SEEDS = range(8)
LIMIT = 4.0
SMALL = 1e-6


def predicted(operation: str) -> float:
    """Sum of squares of the results' errors, for errors of ``SMALL`` times each operand's RMS."""
    rule = RULES[operation]
    call = calls.call(rule, calls.drawn(rule, rule.sample, 0, torch.float32))
    forward = Declared(call, rule)
    forward.run()
    noise = NoiseMoments(forward, {})
    samples = declared(rule)
    for node in call.capture.graph.nodes:
        if node.op == "get_attr" and str(node.target) in samples:
            sample = samples[str(node.target)]
            if sample.grad and node.meta["val"].is_floating_point():
                rms = SMALL * math.sqrt(sample.square)
                noise.errors[node] = [gaussian(0.0, rms, len(sample.shape))]
    noise.run()
    return sum(float(e.square.mean()) * math.prod(r.shape) for e, r in pairs(noise, call))


def pairs(noise: NoiseMoments, call: calls.Call) -> list[tuple[object, Tensor]]:
    values = call.node.meta["val"]
    listed = values if isinstance(values, list | tuple) else [values]
    held = noise.errors.get(call.node, [None] * len(listed))
    return [(e, r) for e, r in zip(held, listed, strict=True) if e is not None]


def sampled(operation: str) -> list[float]:
    """That sum of squares, measured, by seed."""
    rule = RULES[operation]
    call = calls.call(rule, calls.drawn(rule, rule.sample, 0, torch.float64))
    found = []
    for seed in SEEDS:
        arguments = calls.drawn(rule, rule.sample, 1000 + seed, torch.float64)
        tensors = calls.tensors_of(arguments)
        generator = torch.Generator().manual_seed(5000 + seed)
        before = flat(calls.run(call.capture.graph, tensors, seed))
        # A result of few elements is drawn more often.
        draws = 16 if before.numel() < 32 else 1
        total = 0.0
        for _ in range(draws):
            moved = {n: noisy(t, generator) if t.requires_grad else t for n, t in tensors.items()}
            after = flat(calls.run(call.capture.graph, moved, seed))
            total += float((after - before).square().sum())
        found.append(total / draws)
    return found


def flat(results: tuple[object, ...]) -> Tensor:
    floating = [r for r in results if isinstance(r, Tensor) and r.is_floating_point()]
    return torch.cat([r.detach().flatten().double() for r in floating])


def noisy(t: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(t.shape, generator=generator, dtype=t.dtype)
    return (t + SMALL * t.square().mean().sqrt() * drawn).detach().requires_grad_()


@pytest.mark.parametrize("operation", PREDICTED)
def test_an_error_passes_as_predicted(operation: str) -> None:
    measured = torch.tensor(sampled(operation), dtype=torch.float64)
    error = max(float(measured.std()) / math.sqrt(len(measured)), 1e-4 * float(measured.mean()))
    assert abs(float(measured.mean()) - predicted(operation)) <= LIMIT * error
