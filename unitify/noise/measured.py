"""Signal to noise at every value, measured: one run of a captured graph with casts and without.

Rescaling by powers of two changes no bit. So casts do to the captured graph what they do to the
rewritten one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.formats.signal_to_noise import decibels
from unitify.noise.operand_casts import OperandCast
from unitify.recipe.cast import Place
from unitify.rulebook.centering import row
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.operation import call_by_name
from unitify.rulebook.schema import named_arguments, nodes_of

#: Replaces the result of an operation before the run uses it.
Correction = Callable[[fx.Node, Tensor], Tensor]


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
        """Signal to quantization noise in decibels; infinite without error."""
        return decibels(self.relative)


class PairRunner(GraphRunner):
    """Runs a captured graph exactly and, beside it, with the operands of some operations cast.

    ``correct`` replaces a result before both runs use it. The error of that result stays.
    """

    def __init__(
        self,
        capture: Capture,
        casts: Mapping[Place, OperandCast],
        correct: Correction | None = None,
    ) -> None:
        super().__init__(capture.graph, capture.attribute)
        self.casts: dict[str, dict[tuple[str, int], OperandCast]] = {}
        for (operation, name, index), cast in casts.items():
            self.casts.setdefault(operation, {})[name, index] = cast
        self.correct = correct
        #: Values of the run with casts, where they differ from those of the exact run.
        self.noisy: dict[fx.Node, Any] = {}
        self.found: dict[str, ValueNoise] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node exactly, and again with casts where they reach it."""
        state = torch.get_rng_state()
        exact = super().run_node(n)
        reached = n.op == "call_function" and any(o in self.noisy for o in n.all_input_nodes)
        noisy = exact
        if reached or n.name in self.casts:
            torch.set_rng_state(state)
            noisy = self.cast_call(n)
        if self.correct is not None and isinstance(exact, Tensor) and is_scalable(n):
            moved = self.correct(n, exact)
            noisy = moved if noisy is exact else noisy + (moved - exact)
            exact = moved
        if noisy is not exact:
            self.noisy[n] = noisy
        if isinstance(exact, Tensor) and is_scalable(n):
            self.found[n.name] = _compared(exact, noisy)
        for operand in self.user_to_last_uses.get(n, ()):
            self.noisy.pop(operand, None)
        return exact

    def cast_call(self, n: fx.Node) -> Any:
        """The operation on the operands of the run with casts, after its own casts."""
        arguments = self._arguments(n)
        result = call_by_name(n, arguments)
        for cast in self.casts.get(n.name, {}).values():
            if cast.centering is not None:
                # The mean is multiplied with the weight as it is.
                held = named_arguments(n)[cast.centering.weight]
                weight, rounded = self.env[held], arguments[cast.centering.weight]
                mean = torch.tensor(cast.mean, dtype=weight.dtype)
                result = result + row(cast.centering, n, arguments, mean, weight - rounded)
        return result

    def _arguments(self, n: fx.Node) -> dict[str, Any]:
        given = named_arguments(n)
        arguments = {
            name: fx.node.map_arg(value, lambda o: self.noisy.get(o, self.env[o]))
            for name, value in given.items()
        }
        for (name, index), cast in self.casts.get(n.name, {}).items():
            held = arguments[name]
            if isinstance(held, Tensor):
                arguments[name] = cast.rounded(held)
            else:
                where = [i for i, o in enumerate(given[name]) if isinstance(o, fx.Node)][index]
                arguments[name] = [cast.rounded(t) if i == where else t for i, t in enumerate(held)]
        return arguments


def _compared(exact: Tensor, noisy: Any) -> ValueNoise:
    if noisy is exact:
        return ValueNoise(_rms(exact.double()), 0.0, exact.numel())
    # An infinity of a mask is the same in both.
    error = torch.where(noisy == exact, 0.0, noisy.double() - exact.double())
    return ValueNoise(_rms(exact.double()), _rms(error), exact.numel())


def measured_noise(
    capture: Capture,
    casts: Mapping[Place, OperandCast],
    inputs: list[Any] | None = None,
) -> dict[str, ValueNoise]:
    """RMS of every floating value and of the error that ``casts`` leave in it, by name.

    ``inputs``: flat ones; the capture's own example where None. Both runs have the same seed, so
    that dropout is the same.
    """
    given = list(capture.example) if inputs is None else inputs
    runner = PairRunner(capture, casts)
    with torch.no_grad(), unchanged(capture.model):
        runner.run(*given)
    return runner.found


def output_names(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the floating values that a graph returns."""
    output = next(reversed(graph.nodes))
    return tuple(dict.fromkeys(n.name for n in nodes_of(output.args) if is_scalable(n)))


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(x.numel(), 1))
