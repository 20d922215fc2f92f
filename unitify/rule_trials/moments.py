"""The moments of a row: predicted against sampled, without a tolerance.

Operands are drawn many times, by the row's sample. The operation runs forward, and backward with a
normal gradient. Mean squares of results and gradients must agree with the prediction within
``LIMIT`` standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from unitify.analysis.backward import BackwardMoments
from unitify.analysis.forward import Derivation, Fallback, ForwardMoments
from unitify.analysis.moments import Moment, gaussian
from unitify.estimates import Rms
from unitify.rule_trials.calls import Trial, call, drawn, run, tensors_of
from unitify.rulebook.rule_table import Rule
from unitify.rulebook.samples import Sample, parse_arguments

SEEDS = range(32)
#: Standard errors within which a prediction holds: a right one fails once in 16,000.
LIMIT = 4.0
#: The relative error of a mean square in float64, because contractions in float32 round.
ROUNDING = 1e-5

#: Mean squares over the seeds by (value, direction).
Sampled = Mapping[tuple[str, str], list[float]]


def is_predicted(rule: Rule) -> bool:
    """Does the row predict moments, and have a sample?"""
    return bool(rule.sample and (rule.linear or rule.elementwise or rule.forward))


class Declared(ForwardMoments):
    """Operands have the moments of their samples, not the values of one draw."""

    def __init__(self, made: Trial, rule: Rule) -> None:
        super().__init__(made.capture, {rule.operation: rule}, weight_rms=None)
        self.declared = declared(rule)

    def _weight(self, node: fx.Node) -> Moment:
        sample = self.declared[str(node.target)]
        return gaussian(sample.mean, math.sqrt(sample.square), len(sample.shape))


class FromNormal(BackwardMoments):
    """The backward pass starts with independent normal gradients at every result."""

    def _start(self, output: fx.Node) -> None:
        for node in output.all_input_nodes:
            value = node.meta["val"]
            if isinstance(value, Tensor) and value.is_floating_point():
                self._give(node, gaussian(0.0, 1.0, value.dim()), Derivation("given", {}, 1.0))


def declared(rule: Rule) -> dict[str, Sample]:
    """The samples of a row by the names of the operands in ``call``."""
    found: dict[str, Sample] = {}
    for name, value in parse_arguments(rule.sample).items():
        items = {f"{name}_{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {}
        for held, item in {name: value, **items}.items():
            if isinstance(item, Sample):
                found[f"{held}_operand"] = item
    return found


def predicted(rule: Rule) -> tuple[dict[str, Rms], str, list[Fallback]]:
    """Predicted RMS of every value of the row's graph, the way of the prediction, and fallbacks."""
    made = call(rule, drawn(rule, rule.sample, 0, torch.float32))
    forward = Declared(made, rule)
    forward.run()
    backward = FromNormal(forward, None)
    backward.run()
    carriers = [n for n in made.carriers if isinstance(n.meta["val"], Tensor)]
    rms = {str(n.target) if n.op == "get_attr" else n.name: n for n in carriers}
    estimates = {name: Rms(forward.rms(n), backward.rms(n)) for name, n in rms.items()}
    return estimates, forward.ways[made.node], forward.fallbacks


def sampled(rule: Rule) -> dict[tuple[str, str], list[float]]:
    """Mean squares over the seeds, by (value, direction); only what the operation determines."""
    found: dict[tuple[str, str], list[float]] = {}
    made = call(rule, drawn(rule, rule.sample, 0, torch.float32))
    names = [n.name for n in next(reversed(made.capture.graph.nodes)).all_input_nodes]
    for seed in SEEDS:
        arguments = drawn(rule, rule.sample, 1000 + seed, torch.float32)
        leaves = tensors_of(arguments)
        results = run(made.capture.graph, leaves, seed)
        floating = {
            n: r
            for n, r in zip(names, results, strict=True)
            if isinstance(r, Tensor) and r.is_floating_point()
        }
        for name, result in floating.items():
            found.setdefault((name, "forward"), []).append(mean_square(result))
        starts = [r for r in floating.values() if r.requires_grad]
        if not starts:
            continue
        generator = torch.Generator().manual_seed(seed)
        upstream = [gradient_at(r, generator) for r in starts]
        wanted = {n: t for n, t in leaves.items() if t.requires_grad}
        gradients = torch.autograd.grad(starts, list(wanted.values()), upstream, allow_unused=True)
        for name, gradient in zip(wanted, gradients, strict=True):
            if gradient is not None:
                found.setdefault((name, "backward"), []).append(mean_square(gradient))
    return found


def gradient_at(result: Tensor, generator: torch.Generator) -> Tensor:
    """Normal, of unit variance; a single number has a random sign, which is less noisy."""
    drawn = torch.randn(result.shape, generator=generator)
    return (drawn if result.numel() > 1 else drawn.sign()).to(result.dtype)


def mean_square(tensor: Tensor) -> float:
    """E[x²] of a tensor's elements, in float64."""
    return float(tensor.detach().double().square().mean())


def z_scores(
    estimates: Mapping[str, Rms], found: Sampled, factor: float = 1.0
) -> dict[tuple[str, str], float]:
    """The distance of sampled mean squares from (factor × predicted RMS)², in standard errors."""
    scores: dict[tuple[str, str], float] = {}
    for (name, direction), values in found.items():
        rms = getattr(estimates[name], direction) or 0.0
        if factor != 1.0 and rms == 0.0:
            continue
        squares = torch.tensor(values, dtype=torch.float64)
        error = max(float(squares.std()) / math.sqrt(len(values)), ROUNDING * rms**2, 1e-30)
        scores[name, direction] = (float(squares.mean()) - (factor * rms) ** 2) / error
    return scores
