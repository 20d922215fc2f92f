"""Signal to noise at every value, measured: a captured graph run with casts and without.

The yardstick of ``noise``. Rescaling by powers of two changes no bit, so what casts do to the
captured graph they do to the rewritten one, where their scales are those of stored values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from unitify.capture.execution import GraphRunner, unchanged
from unitify.capture.whole import Capture
from unitify.formats.table import quantise
from unitify.noise.cast_error import OperandCast
from unitify.noise.moments import Place
from unitify.noise.predict import ValueNoise
from unitify.operations.laws import is_scalable
from unitify.operations.operation import call_by_name
from unitify.operations.schema import named_arguments


class _CastingRunner(GraphRunner):
    """Runs a captured graph with the operands of some operations cast."""

    casts: Mapping[Place, OperandCast]

    def run_node(self, n: fx.Node) -> Any:
        places = [place for place in self.casts if place[0] == n.name]
        if not places:
            return super().run_node(n)
        given = named_arguments(n)
        arguments = {
            name: fx.node.map_arg(value, lambda o: self.env[o]) for name, value in given.items()
        }
        for place in places:
            _, name, index = place
            cast, held = self.casts[place], arguments[name]
            if isinstance(held, Tensor):
                arguments[name] = _rounded(cast, held)
            else:
                where = [i for i, o in enumerate(given[name]) if isinstance(o, fx.Node)][index]
                arguments[name] = [
                    _rounded(cast, t) if i == where else t for i, t in enumerate(held)
                ]
        result = call_by_name(n, arguments)
        if self.observe is not None:
            self.observe(n, result)
        return result


def _rounded(cast: OperandCast, x: Tensor) -> Tensor:
    return quantise(x / cast.scale, cast.format) * cast.scale


def measured_noise(
    capture: Capture,
    casts: Mapping[Place, OperandCast],
    inputs: list[Any] | None = None,
    seed: int = 0,
) -> dict[str, ValueNoise]:
    """RMS of every floating value and of the error that ``casts`` leave in it, by name.

    ``inputs``: flat ones; the capture's own example where None. Both runs have the same seed, so
    that dropout is the same.
    """
    exact: dict[str, Tensor] = {}
    found: dict[str, ValueNoise] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor) and is_scalable(node):
            exact[node.name] = value.detach()

    def compare(node: fx.Node, value: Any) -> None:
        if node.name not in exact:
            return
        signal = exact.pop(node.name).double()
        # An infinity of a mask is the same in both.
        same = value.detach() == signal
        error = torch.where(same, 0.0, value.detach().double() - signal)
        found[node.name] = ValueNoise(_rms(signal), _rms(error), signal.numel())

    given = list(capture.example) if inputs is None else inputs
    with torch.no_grad():
        for runner in (GraphRunner, _CastingRunner):
            observe = keep if runner is GraphRunner else compare
            made = runner(capture.graph, capture.attribute, observe)
            if isinstance(made, _CastingRunner):
                made.casts = casts
            with unchanged(capture.model, seed):
                made.run(*given)
    return found


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / math.sqrt(max(x.numel(), 1))
