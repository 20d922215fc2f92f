"""A mixed-integer linear program over exponents: variables, factors that cost, and its solution.

It knows no graph. ``planner`` builds a program; ``solve`` passes it to HiGHS, through scipy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: A band of so many octaves holds integers near any exponent in it.
_WIDE = 4


@dataclass(frozen=True)
class Exponent:
    """A linear expression: a sum of multiples of variables, and a constant."""

    terms: Mapping[int, float] = field(default_factory=dict)
    constant: float = 0.0

    def __add__(self, other: Exponent) -> Exponent:
        terms = dict(self.terms)
        for variable, multiple in other.terms.items():
            terms[variable] = terms.get(variable, 0.0) + multiple
        held = {variable: multiple for variable, multiple in terms.items() if multiple}
        return Exponent(held, self.constant + other.constant)

    def __sub__(self, other: Exponent) -> Exponent:
        return self + -1 * other

    def __rmul__(self, multiple: float) -> Exponent:
        terms = {v: multiple * m for v, m in self.terms.items() if multiple * m}
        return Exponent(terms, multiple * self.constant)

    def value(self, values: Sequence[float]) -> int:
        """The exponent for these values of the variables."""
        return round(self.constant + sum(m * values[v] for v, m in self.terms.items()))


ZERO = Exponent()


@dataclass(frozen=True)
class Solution:
    """The value of every variable.

    ``gap``: by which share another solution may be cheaper; zero where this one is proven cheapest.
    """

    values: Sequence[float]
    gap: float


class Program:
    """Collects variables and their costs; ``solve`` finds the cheapest values."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._cost: list[float] = []
        self._is_integer: list[bool] = []
        #: Each: low ≤ Σ multiple · variable ≤ high.
        self._rows: list[tuple[Mapping[int, float], float, float]] = []
        #: Variables that are one where a factor or a rescale exists, and distances in octaves.
        self._marks: list[int] = []
        self._distances: list[int] = []
        #: The mark of each expression that was asked for. Factors that are equal share it.
        self._mark_of: dict[tuple[Any, ...], Exponent] = {}

    def variable(self, low: float, high: float) -> Exponent:
        """An integer from ``low`` to ``high``."""
        return self._variable(low, high, 0.0, is_integer=True)

    def equal(self, exponent: Exponent) -> None:
        """Require that ``exponent`` is zero."""
        self._rows.append((exponent.terms, -exponent.constant, -exponent.constant))

    def near(self, exponent: Exponent, wanted: float) -> None:
        """Prefer an ``exponent`` near ``wanted`` among solutions of one cost."""
        if exponent.terms:
            away = exponent - Exponent({}, wanted)
            distance = self._variable(0.0, float("inf"), 0.0, is_integer=False)
            self._distances += distance.terms
            for signed in (away, -1 * away):
                self._rows.append(((distance - signed).terms, signed.constant, float("inf")))

    def rescale(self, factors: Iterable[tuple[Exponent, float]], weight: float) -> None:
        """Add the cost of a rescale: ``weight`` if any factor is not one, and each factor's own.

        ``factors``: log2 of each, and its cost.
        """
        marks: dict[int, Exponent] = {}
        for exponent, cost in factors:
            if mark := self._mark(exponent):
                (place,) = mark.terms
                self._cost[place] += cost
                marks[place] = mark
        if len(marks) == 1:
            # The factor is the rescale.
            self._cost[next(iter(marks))] += weight
        elif marks:
            made = self._variable(0.0, 1.0, weight, is_integer=False)
            self._marks += made.terms
            self._rows += [((made - mark).terms, 0.0, float("inf")) for mark in marks.values()]

    def solve(self, seconds: float) -> Solution | None:
        """The cheapest values, and among these the nearest; None where none was found in time."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        if not self._low:
            return Solution((), 0.0)
        places = [(r, v, m) for r, (terms, *_) in enumerate(self._rows) for v, m in terms.items()]
        rows, columns, multiples = zip(*places, strict=True) if places else ((), (), ())
        shape = len(self._rows), len(self._low)
        limits = LinearConstraint(
            csr_array((np.array(multiples, dtype=float), (rows, columns)), shape=shape),
            [low for _, low, _ in self._rows],
            [high for *_, high in self._rows],
        )

        integers = np.array(self._is_integer, dtype=int)
        high, distance = np.array(self._high), np.zeros(len(self._low))
        distance[self._distances] = 1.0
        marks = np.zeros_like(integers)
        marks[self._marks] = 1

        def solved(cost: Any, integrality: Any, high: Any) -> Any:
            return milp(
                cost,
                integrality=integrality,
                bounds=Bounds(self._low, high),
                constraints=limits if places else None,
                options={"time_limit": seconds, "mip_rel_gap": 0.0},
            )

        # Exponents between integers are found several times faster, and those of wide bands mostly
        # have integers of the same cost.
        narrow = high - np.array(self._low) < _WIDE
        for integrality in (integers * (narrow | (marks == 1)), integers):
            cheapest = solved(np.array(self._cost), integrality, high)
            if cheapest.x is None:
                continue
            # The second search adds no factor to the first solution: a mark is a bound there.
            within = high.copy()
            within[self._marks] = np.round(cheapest.x[self._marks])
            nearest = solved(distance, integers * (1 - marks), within)
            if nearest.x is not None:
                gap = 0.0 if cheapest.status == 0 else float(cheapest.mip_gap)
                return Solution(nearest.x.tolist(), gap)
        return None

    def _variable(self, low: float, high: float, cost: float, is_integer: bool) -> Exponent:
        self._low.append(low)
        self._high.append(high)
        self._cost.append(cost)
        self._is_integer.append(is_integer)
        return Exponent({len(self._low) - 1: 1.0})

    def _mark(self, exponent: Exponent) -> Exponent | None:
        """A variable that is one where ``exponent`` is not zero; None where it is always zero."""
        low, high = self._range(exponent)
        if low == high == 0.0:
            return None
        key = exponent.constant, *sorted(exponent.terms.items())
        if key not in self._mark_of:
            mark = self._variable(float(low > 0.0 or high < 0.0), 1.0, 0.0, is_integer=True)
            self._marks += mark.terms
            least, most = exponent - low * mark, exponent - high * mark
            self._rows.append((least.terms, -exponent.constant, float("inf")))
            self._rows.append((most.terms, -float("inf"), -exponent.constant))
            self._mark_of[key] = mark
        return self._mark_of[key]

    def _range(self, exponent: Exponent) -> tuple[float, float]:
        low = high = exponent.constant
        for variable, multiple in exponent.terms.items():
            ends = multiple * self._low[variable], multiple * self._high[variable]
            low, high = low + min(ends), high + max(ends)
        return low, high
