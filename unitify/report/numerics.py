"""The numerics of a model as plain frozen values: what a report shows.

Everything is in units of the original ("true"): RMS, magnitudes and gradients as the original
holds them. What the transformed module stores is that divided by a power of two, whose exponent
stands beside it. ``gathering`` makes these values; ``document`` writes them as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unitify.analysis.forward import Step
from unitify.diagnostics import Diagnostic
from unitify.drift.monitor import Record
from unitify.formats.losses import Loss
from unitify.formats.magnitudes import Magnitudes
from unitify.recipe.choices import Choice
from unitify.recipe.recipe import Recipe
from unitify.report.origins import Origin
from unitify.report.report import is_unit
from unitify.rule_trials.listing import Row

#: What is compared in a report.
GRAPHS = ("original", "transformed")
DIRECTIONS = ("forward", "backward")
#: Signal to quantization noise in decibels, by graph; None without any noise.
Ratios = Mapping[str, float | None]


@dataclass(frozen=True)
class Side:
    """A value in the forward pass, or the gradient that reaches it in the backward pass.

    - ``predicted``, ``measured``: true RMS by analysis and on batches; None where there is none
    - ``exponent``: log2 of the scale: stored RMS = true RMS / 2^exponent
    - ``magnitudes``: as measured on batches, of the true value
    - ``losses``: graph → format → what that format loses of it, as measured, else of a normal
      distribution of the predicted RMS
    - ``cast``: the format that the recipe casts it to; "" for none
    - ``steps``: the derivation; the contributions that are added up, for a gradient
    """

    predicted: float | None = None
    measured: float | None = None
    exponent: int = 0
    magnitudes: Magnitudes | None = None
    losses: Mapping[str, Mapping[str, Loss]] = field(default_factory=dict)
    cast: str = ""
    steps: tuple[Step, ...] = ()

    @property
    def rms(self) -> float | None:
        """True RMS: as measured where it was, else as predicted."""
        return self.measured if self.measured is not None else self.predicted

    @property
    def stored(self) -> float | None:
        """RMS as the transformed module stores it."""
        return None if self.rms is None else self.rms / 2.0**self.exponent


@dataclass(frozen=True)
class Value:
    """One floating-point value of the graph, which is an input, a parameter or a result.

    ``kind``: "input", "parameter", "buffer", "mask" (it carries masking constants) or "result".
    ``module``: path of the module that it was made in. ``parameter``: a parameter's own name.
    ``is_true_weight``: a parameter that stays true on purpose, or made of such alone.
    ``restored``: why its operands return to true scale: "no rule", "law", or "" where they do not.
    ``contraction``: the contraction whose result (or one of whose results) it is; "" for others.
    ``sqnr``: as measured, with the casts of the recipe everywhere before it; empty without noise.
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
        """Path of the module that it was made in; "" for the model itself."""
        return self.origin.module

    def side(self, direction: str) -> Side:
        """The side of a ``direction``, "forward" or "backward"."""
        return self.forward if direction == "forward" else self.backward


@dataclass(frozen=True)
class ScaleClass:
    """Values that share a scale and reach each other without a rescale. Exponents are log2."""

    values: tuple[str, ...]
    forward: int
    backward: int


@dataclass(frozen=True)
class Crossing:
    """``uses`` of a value of one class by another, through a rescale; exponents of its factors."""

    source: int
    target: int
    forward: int
    backward: int
    uses: int = 1


@dataclass(frozen=True)
class Numerics:
    """What every value of a model is like, in the original and as transformed.

    ``recipe``: whose casts are shown; ``is_applied``: does the module have them? (They are shown
    as what "fp8" would do otherwise.) ``choices``: what it does with every value. ``batches``: how
    many were measured. ``exact``: bitwise the original before casts; None where nobody looked.
    ``notes``: what could not be said, and why.
    """

    model: str
    target: str
    scales: str
    recipe: Recipe
    is_applied: bool
    batches: int
    exact: bool | None
    parameters: int
    values: tuple[Value, ...]
    choices: tuple[Choice, ...]
    classes: tuple[ScaleClass, ...]
    crossings: tuple[Crossing, ...]
    rules: Mapping[str, Row]
    formats: tuple[str, ...]
    findings: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()
    drift: tuple[Record, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def unit_share(self, direction: str, graph: str) -> tuple[int, int]:
        """(How many values have an RMS in the unit band, how many have one at all).

        Weights that stay true on purpose are not counted: ``true_weights`` says how many.
        """
        sides = [value.side(direction) for value in self.values if not value.is_true_weight]
        found = [side.rms if graph == "original" else side.stored for side in sides if side.rms]
        return sum(is_unit(rms) for rms in found if rms), len(found)

    def true_weights(self, direction: str) -> int:
        """How many weights with an RMS stay true on purpose."""
        return sum(bool(v.side(direction).rms) for v in self.values if v.is_true_weight)
