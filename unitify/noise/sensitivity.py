"""Sensitivity: how much error the casts of each operation cause at every output.

    E[(v · J e)²] = |J e|²  for v of independent signs, and v · J is one backward pass

e is the error that the casts of one operation make on exact operands. J is the derivative of an
output by the results of that operation. One run gives every e. One backward pass gives v · J for
every operation. So correlated errors, and their way through later layers, count as they are, to
first order. Without batches, values get the moments of the model's running statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, detached, unchanged
from unitify.capture.whole import Capture
from unitify.noise.measured import Correction, PairRunner, output_names
from unitify.noise.mixed_precision import Sensitivity
from unitify.noise.operand_casts import OperandCast
from unitify.noise.running_statistics import toward_running_statistics
from unitify.recipe.cast import Place
from unitify.rulebook.rule_table import RuleTable

#: Random directions v at each output, for each batch. (v · J e)² varies by √2 of its mean, and the
#: mean over 24 by √(2 / 24) = 29 %, about a decibel.
DIRECTIONS = 24


def sensitivity(
    capture: Capture,
    rules: RuleTable,
    casts: Mapping[Place, OperandCast],
    batches: Iterable[list[Any]] | None = None,
) -> Sensitivity:
    """The error that every operation with cast operands causes at each output.

    ``batches``: lists of flat inputs; the example where None. Weights must hold data.
    """
    correct = toward_running_statistics(capture, rules) if batches is None else None
    if batches is None:
        batches = [list(capture.example)]
    names = output_names(capture.graph)
    signal = dict.fromkeys(names, 0.0)
    error: dict[str, dict[str, float]] = {name: {} for name in names}
    generator = torch.Generator().manual_seed(0)
    with unchanged(capture.model):
        for inputs in batches:
            runner = _Probe(capture, casts, correct, names)
            with torch.enable_grad():
                runner.run(*inputs)
            for name, value in runner.outputs.items():
                signal[name] += float(value.detach().double().square().sum())
                for operation, own in _reached(value, runner, generator).items():
                    error[name][operation] = error[name].get(operation, 0.0) + own
    return Sensitivity(
        {
            name: {operation: own / signal[name] for operation, own in found.items()}
            for name, found in error.items()
            if signal[name]
        }
    )


def _reached(value: Tensor, runner: _Probe, generator: torch.Generator) -> dict[str, float]:
    """Operation → sum of squares of the error that it causes at ``value``."""
    found = dict.fromkeys(runner.errors, 0.0)
    if not value.requires_grad:
        return found
    leaves = [leaf for held in runner.leaves.values() for leaf in held]
    for _ in range(DIRECTIONS):
        signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
        gradients = iter(
            torch.autograd.grad(value, leaves, signs, retain_graph=True, allow_unused=True)
        )
        for operation, errors in runner.errors.items():
            pairs = [(next(gradients), error) for error in errors]
            moved = sum(float((g.double() * e.double()).sum()) for g, e in pairs if g is not None)
            found[operation] += moved**2 / DIRECTIONS
    return found


class _Probe(PairRunner):
    """Runs a captured graph exactly; keeps the error that each operation's own casts make."""

    def __init__(
        self,
        capture: Capture,
        casts: Mapping[Place, OperandCast],
        correct: Correction | None,
        names: Iterable[str],
    ) -> None:
        super().__init__(capture, casts, correct)
        self.attribute = lambda target: detached(capture.attribute(target))
        self.names = frozenset(names)
        #: By operation with casts: the errors of its results, and zeros that are added there, by
        #: which outputs are differentiated.
        self.errors: dict[str, list[Tensor]] = {}
        self.leaves: dict[str, list[Tensor]] = {}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node exactly; beside it, once, with its own casts."""
        state = torch.get_rng_state()
        result = GraphRunner.run_node(self, n)
        if n.name in self.casts:
            after = torch.get_rng_state()
            torch.set_rng_state(state)
            with torch.no_grad():
                cast = self.cast_call(n)
            torch.set_rng_state(after)
            result = self._marked(n.name, result, cast)
        if self.correct is not None and isinstance(result, Tensor) and result.is_floating_point():
            # The derivative is that of the uncorrected result.
            result = result + (self.correct(n, result.detach()) - result.detach())
        if n.name in self.names:
            self.outputs[n.name] = result
        return result

    def _marked(self, name: str, exact: Any, cast: Any) -> Any:
        several = isinstance(exact, list | tuple)
        found = []
        for true, noisy in zip(exact, cast, strict=True) if several else [(exact, cast)]:
            if isinstance(true, Tensor) and true.is_floating_point():
                leaf = torch.zeros_like(true, requires_grad=True)
                self.leaves.setdefault(name, []).append(leaf)
                self.errors.setdefault(name, []).append(noisy - true.detach())
                true = true + leaf
            found.append(true)
        return found if several else found[0]
