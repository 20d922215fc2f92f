"""Mixed precision: which operations stay uncast so that every output keeps enough signal to noise.

``Sensitivity`` says how much of each output's noise-to-signal ratio each operation causes. The
errors of different casts add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unitify.formats.signal_to_noise import decibels


@dataclass(frozen=True)
class Sensitivity:
    """Output → operation → E[error²] / E[value²] that the operation's casts cause at the output."""

    outputs: Mapping[str, Mapping[str, float]]

    def sqnr(self, left_out: Iterable[str] = (), remaining: float = 0.0) -> dict[str, float]:
        """Signal to noise of every output in decibels, with the operations ``left_out`` not cast.

        ``remaining``: the share of its error that such an operation keeps. It is 0 for exact
        arithmetic; for BF16 it is the ``relative_error`` of BF16 over that of the format.
        """
        out = set(left_out)
        return {
            output: decibels(
                math.fsum(r * (remaining if name in out else 1.0) for name, r in each.items())
            )
            for output, each in self.outputs.items()
        }

    @property
    def operations(self) -> tuple[str, ...]:
        """Every operation whose operands are cast."""
        return tuple(dict.fromkeys(name for each in self.outputs.values() for name in each))


def leave_out(
    sensitivity: Sensitivity, flops: Mapping[str, float], min_sqnr: float, remaining: float = 0.0
) -> tuple[str, ...]:
    """The operations to leave uncast so that every output keeps ``min_sqnr`` decibels.

    They are in graph order. The choice is greedy: it leaves out the operation with the most error
    a FLOP until the bound holds, then takes back the largest that are not needed. With one output
    it costs at most one operation, the costliest, more than the optimum. Where no choice is enough
    it returns all operations. ``remaining`` is that of ``Sensitivity.sqnr``. Operations without
    ``flops`` are free.
    """
    limit = 10 ** (-min_sqnr / 10)
    cost = {name: max(float(flops.get(name, 0.0)), 1e-9) for name in sensitivity.operations}
    saved = {
        output: {name: ratio * (1 - remaining) for name, ratio in each.items()}
        for output, each in sensitivity.outputs.items()
    }
    excess = {o: math.fsum(each.values()) - limit for o, each in sensitivity.outputs.items()}
    left_out: list[str] = []

    def leave(name: str, sign: int) -> None:
        for output, each in saved.items():
            excess[output] -= sign * each.get(name, 0.0)

    def worth(name: str) -> float:
        gains = (saved[o].get(name, 0.0) for o in excess if excess[o] > 0)
        return sum(gains) / cost[name]

    while any(e > 0 for e in excess.values()) and len(left_out) < len(cost):
        best = max((n for n in cost if n not in left_out), key=worth)
        left_out.append(best)
        leave(best, 1)
    for name in sorted(left_out, key=lambda n: -cost[n]):
        if all(e + saved[o].get(name, 0.0) <= 0 for o, e in excess.items()):
            left_out.remove(name)
            leave(name, -1)
    return tuple(n for n in cost if n in left_out)
