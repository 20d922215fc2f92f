"""The result of a unit scaling scheme: constants of the graph, and roles of parameters.

Plain frozen values. They are chosen once, applied again by ``rebuild``, and written to plan.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from unitify.diagnostics import PlanMismatch, UnitifyError
from unitify.rows import made


@dataclass(frozen=True)
class ParameterRole:
    """The role of a parameter, from the graph.

    - ``role``: "embedding" (a table, read by index or added), "hidden" or "readout" (an operand of
      contractions; a readout is the last one before an output), "gain", "bias", or "other", which
      stays as it is
    - ``fan_in``: the terms of the sum that makes an element of the result; zero without sums
    - ``fan_out``: the number of results from one element; the width of an embedding
    - ``depth``: the number of residual branches of its stack; zero outside
    - ``gradient``: RMS of its gradient in the first plan, a power of two; one without a plan
    """

    role: str
    fan_in: float = 0.0
    fan_out: float = 0.0
    depth: int = 0
    gradient: float = 1.0


@dataclass(frozen=True)
class WeightedSum:
    """A residual sum skip · x + branch · f(x).

    ``index``: its own among the ``depth`` branches of its stack; ``kind``: "attention" or "other".
    """

    value: str
    kind: str
    index: int
    depth: int
    skip: float
    branch: float


@dataclass(frozen=True)
class Reparametrization:
    """The constants that make a captured graph the true model of a scheme.

    - ``scheme``: its name; ``options``: its fields that differ from their defaults
    - ``outputs``: value → the multiplier of the result; ``operands``: value → argument → the
      multiplier of the operand; ``numbers``: value → argument → the number that replaces it
    - ``parameters``: name → role; ``sums``: the residual sums
    """

    scheme: str
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, float] = field(default_factory=dict)
    operands: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parameters: Mapping[str, ParameterRole] = field(default_factory=dict)
    sums: tuple[WeightedSum, ...] = ()

    def with_gradients(self, rms: Mapping[str, float]) -> Reparametrization:
        """The same, with the RMS of parameters' gradients."""
        known = {n: replace(r, gradient=rms.get(n, 1.0)) for n, r in self.parameters.items()}
        return replace(self, parameters=known)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "scheme": self.scheme,
            "options": dict(self.options),
            "outputs": dict(self.outputs),
            "operands": {n: dict(held) for n, held in self.operands.items()},
            "numbers": {n: dict(held) for n, held in self.numbers.items()},
            "parameters": {n: asdict(role) for n, role in self.parameters.items()},
            "sums": [asdict(one) for one in self.sums],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Reparametrization:
        """The inverse of ``to_json``.

        Raises ``UnitifyError`` (U301) for other data.
        """
        try:
            return made(Reparametrization, data)
        except ValueError as error:
            problem = f"not a scheme ({error})"
            raise UnitifyError(PlanMismatch(problem=problem)) from None

    def describe(self) -> str:
        """Roles of parameters, residual sums and multipliers, as text."""
        count = Counter(role.role for role in self.parameters.values())
        lines = [f"{self.scheme}: " + ", ".join(f"{n} {role}" for role, n in count.items())]
        for name, role in self.parameters.items():
            stack = f", one of {role.depth} branches" if role.depth else ""
            fans = f" {role.fan_in:g} → {role.fan_out:g}" if role.fan_in else ""
            lines.append(f"  {role.role:9} {name}{fans}{stack}")
        for one in self.sums:
            lines.append(
                f"  {one.value} = {one.skip:.4g} · skip + {one.branch:.4g} · branch "
                f"({one.kind}, {one.index + 1} of {one.depth})"
            )
        lines += [f"  {name} × {m:.4g}" for name, m in self.outputs.items()]
        for name, held in self.operands.items():
            lines += [f"  {argument} of {name} × {m:.4g}" for argument, m in held.items()]
        for name, held in self.numbers.items():
            lines += [f"  {argument} of {name} = {m:.4g}" for argument, m in held.items()]
        return "\n".join(lines)
