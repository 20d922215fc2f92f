"""The numerics of a model as plain frozen values: the contents of a report.

RMS, magnitudes and gradients are true: as the original holds them. The transformed module stores
them divided by a power of two, whose exponent is given. ``gathering`` makes these values;
``document`` writes them as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unitify.analysis.forward import Derivation
from unitify.check.finding import Start, starts
from unitify.check.outcome import Outcome
from unitify.diagnostics import Diagnostic
from unitify.drift.monitor import Record
from unitify.formats.losses import Loss
from unitify.formats.magnitudes import Magnitudes
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.report.origins import Origin
from unitify.report.report import is_unit
from unitify.rule_trials.listing import RuleText

#: The graphs that a report compares, and the directions.
GRAPHS = ("original", "transformed")
DIRECTIONS = ("forward", "backward")
#: Signal to quantization noise in decibels, by graph; None without any noise.
Ratios = Mapping[str, float | None]


@dataclass(frozen=True)
class Side:
    """A value in the forward pass, or its gradient in the backward pass.

    - ``predicted``, ``measured``: true RMS by analysis and on batches; None where there is none
    - ``exponent``: log2 of the scale: stored RMS = true RMS / 2^exponent
    - ``magnitudes``: histogram of the true value, measured on batches
    - ``losses``: graph → format → the share that the format loses: measured, else that of a normal
      distribution with the predicted RMS. A true weight is rounded at the scale of its cast
    - ``cast``: the format to which the recipe casts it; "" for none
    - ``steps``: the derivation; for a gradient, the terms of its sum
    - ``is_rounding``: a gradient that is zero but for rounding, like that of a bias of keys
    """

    predicted: float | None = None
    measured: float | None = None
    exponent: int = 0
    magnitudes: Magnitudes | None = None
    losses: Mapping[str, Mapping[str, Loss]] = field(default_factory=dict)
    cast: str = ""
    steps: tuple[Derivation, ...] = ()
    is_rounding: bool = False

    @property
    def rms(self) -> float | None:
        """True RMS: measured, else predicted."""
        return self.measured if self.measured is not None else self.predicted

    @property
    def stored(self) -> float | None:
        """RMS as the transformed module stores it."""
        return None if self.rms is None else self.rms / 2.0**self.exponent


@dataclass(frozen=True)
class Value:
    """One floating-point value of the graph: an input, a parameter or a result.

    ``kind``: "input", "parameter", "buffer", "mask" (it carries masking constants) or "result".
    ``parameter``: the name of a parameter. ``is_true_weight``: is it a parameter that stays true on
    purpose, or computed from such parameters alone?
    ``restored``: why its operands return to true scale: "no rule", "law", or "" where they do not.
    ``contraction``: the contraction of which it is a result; "" for others.
    ``sqnr``: measured, with all casts of the recipe before it; empty without noise.
    """

    name: str
    kind: str
    operation: str
    shape: tuple[int, ...]
    origin: Origin
    forward: Side
    backward: Side
    parameter: str = ""
    is_true_weight: bool = False
    restored: str = ""
    contraction: str = ""
    sqnr: Ratios = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Path of the module that computes it; "" for the model itself."""
        return self.origin.module

    def side(self, direction: str) -> Side:
        """The side of a ``direction``, "forward" or "backward"."""
        return self.forward if direction == "forward" else self.backward


@dataclass(frozen=True)
class ScaleClass:
    """Values that share a scale, connected without a rescale. Exponents are log2."""

    values: tuple[str, ...]
    forward: int
    backward: int


@dataclass(frozen=True)
class Crossing:
    """A rescale between two classes, with the exponents of its factors and the number of uses."""

    source: int
    target: int
    forward: int
    backward: int
    uses: int = 1


@dataclass(frozen=True)
class Checked:
    """What ``unitify check`` finds in one of the graphs.

    ``values``: the name of a finding → that of its value.
    """

    outcome: Outcome
    values: Mapping[str, str]

    @property
    def starts(self) -> list[Start]:
        """The findings by the line where they begin."""
        return starts(self.outcome.findings)


@dataclass(frozen=True)
class Numerics:
    """The numerics of every value of a model, in the original and as transformed.

    ``recipe``: the recipe whose casts are shown; ``is_applied``: does the module have them? (A
    module without a recipe is shown with the casts of "fp8".) ``placement`` and ``carrier``:
    those of the plan.
    ``choices``: one for every value.
    ``batches``: the number of measured batches. ``exact``: bitwise the original before casts; None
    where it was not verified. ``notes``: what is missing, and why. ``checked``: by graph, what
    ``unitify check`` finds.
    """

    model: str
    target: str
    scales: str
    recipe: Recipe
    is_applied: bool
    placement: str
    carrier: str
    batches: int
    exact: bool | None
    parameters: int
    values: tuple[Value, ...]
    choices: tuple[Choice, ...]
    classes: tuple[ScaleClass, ...]
    crossings: tuple[Crossing, ...]
    rules: Mapping[str, RuleText]
    formats: tuple[str, ...]
    findings: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()
    drift: tuple[Record, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    checked: Mapping[str, Checked] = field(default_factory=dict)

    @property
    def stable_names(self) -> dict[str, str]:
        """The names in the graph → those that ``check`` prints."""
        return {
            value: stable for held in self.checked.values() for stable, value in held.values.items()
        }

    def unit_share(self, direction: str, graph: str) -> tuple[int, int]:
        """(Number of values with an RMS in the unit band, number of values with an RMS).

        Weights that stay true on purpose are not counted; ``true_weights`` is their number.
        """
        sides = [value.side(direction) for value in self.values if not value.is_true_weight]
        found = [side.rms if graph == "original" else side.stored for side in sides if side.rms]
        return sum(is_unit(rms) for rms in found if rms), len(found)

    def true_weights(self, direction: str) -> int:
        """The number of weights with an RMS that stay true on purpose."""
        return sum(bool(v.side(direction).rms) for v in self.values if v.is_true_weight)
