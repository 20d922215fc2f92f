"""Signal to noise at every value, measured: a captured graph run with casts and without, in step.

The yardstick of ``noise``. Rescaling by powers of two changes no bit, so what casts do to the
captured graph they do to the rewritten one, where their scales are those of stored values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.formats.table import quantise
from unitify.noise.cast_error import OperandCast
from unitify.noise.moments import Place
from unitify.noise.predict import ValueNoise
from unitify.operations.centring import row
from unitify.operations.laws import is_scalable
from unitify.operations.operation import call_by_name
from unitify.operations.schema import named_arguments

#: A result as an operation computes it → as the run goes on with it.
Correction = Callable[[fx.Node, Tensor], Tensor]


class PairRunner(GraphRunner):
    """Runs a captured graph exactly and, beside it, with the operands of some operations cast."""

    def __init__(
        self, capture: Capture, casts: Mapping[Place, OperandCast], correct: Correction | None
    ) -> None:
        super().__init__(capture.graph, capture.attribute)
        self.casts: dict[str, dict[tuple[str, int], OperandCast]] = {}
        for (operation, name, index), cast in casts.items():
            self.casts.setdefault(operation, {})[name, index] = cast
        self.correct = correct
        #: What the casts make of a value, as far as they reach.
        self.noisy: dict[fx.Node, Any] = {}
        self.found: dict[str, ValueNoise] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node twice, where casts reach it."""
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
        """An operation on its operands as they are here, those cast that are to be."""
        arguments = self._arguments(n)
        result = call_by_name(n, arguments)
        for cast in self.casts.get(n.name, {}).values():
            if cast.centring is not None:
                # The mean is multiplied with the weight as it is.
                held = named_arguments(n)[cast.centring.weight]
                weight, rounded = self.env[held], arguments[cast.centring.weight]
                mean = torch.tensor(cast.mean, dtype=weight.dtype)
                result = result + row(cast.centring, n, arguments, mean, weight - rounded)
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
                arguments[name] = rounded(cast, held)
            else:
                where = [i for i, o in enumerate(given[name]) if isinstance(o, fx.Node)][index]
                arguments[name] = [
                    rounded(cast, t) if i == where else t for i, t in enumerate(held)
                ]
        return arguments


def rounded(cast: OperandCast, x: Tensor) -> Tensor:
    """What a cast makes of an operand."""
    mean = cast.laid(x.dim())
    mean = mean.to(x.dtype) if isinstance(mean, Tensor) else mean
    return mean + quantise((x - mean) / cast.scale, cast.format) * cast.scale


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
    seed: int = 0,
    correct: Correction | None = None,
) -> dict[str, ValueNoise]:
    """RMS of every floating value and of the error that ``casts`` leave in it, by name.

    ``inputs``: flat ones; the capture's own example where None. Both runs have the same seed, so
    that dropout is the same. ``correct``: what to make of a result before the runs go on with it;
    errors stay as they are.
    """
    given = list(capture.example) if inputs is None else inputs
    runner = PairRunner(capture, casts, correct)
    with torch.no_grad(), unchanged(capture.model, seed):
        runner.run(*given)
    return runner.found


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(x.numel(), 1))
