"""Who adds how much to the error of the outputs, and which operations to leave out for less.

``Budget``: of every operation with cast operands the share of each output's noise-to-signal ratio
that is its own (``probed`` finds it). Errors of different casts add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from unitify.formats.signal_to_noise import decibels


@dataclass(frozen=True)
class Budget:
    """Output → operation → E[error²] / E[value²] of the output that the operation's casts add."""

    outputs: Mapping[str, Mapping[str, float]]

    def sqnr(self, left_out: Iterable[str] = (), remaining: float = 0.0) -> dict[str, float]:
        """Decibels at every output with these operations left out (not cast).

        ``remaining``: what share of its error an operation keeps when it is left out: 0 for exact
        arithmetic, ``relative_error`` of BF16 over that of the format otherwise.
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
        """Every operation that has cast operands."""
        return tuple(dict.fromkeys(name for each in self.outputs.values() for name in each))


def choose(
    budget: Budget, flops: Mapping[str, float], min_sqnr: float, remaining: float = 0.0
) -> tuple[str, ...]:
    """The operations to leave out so that every output keeps ``min_sqnr`` decibels, in graph order.

    The fewest FLOPs, as near as greed comes: most error a FLOP first, and what turns out not to be
    needed is put back, largest first. At most the dearest operation dearer than the optimum, with
    one output. All operations where no choice is enough (``Budget.sqnr`` tells).
    ``remaining`` as for ``Budget.sqnr``; operations without ``flops`` count as free.
    """
    limit = 10 ** (-min_sqnr / 10)
    cost = {name: max(float(flops.get(name, 0.0)), 1e-9) for name in budget.operations}
    saved = {
        output: {name: ratio * (1 - remaining) for name, ratio in each.items()}
        for output, each in budget.outputs.items()
    }
    excess = {o: math.fsum(each.values()) - limit for o, each in budget.outputs.items()}
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
