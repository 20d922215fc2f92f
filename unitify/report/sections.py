"""The sections of a report's page: their titles, and an introduction to each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A section of the page, filled by the script of its ``id``. ``short``: a navigation label."""

    id: str
    short: str
    title: str
    lead: str


SECTIONS = (
    Section(
        id="verdict",
        short="Verdict",
        title="Verdict",
        lead="What the formats of the recipe would lose of the model as it is, and the line where "
        "that begins; then what unitify changed, and what it leaves. These are the findings of "
        "unitify check, by its limits: signal to noise, and shares to zero and beyond the range.",
    ),
    Section(
        id="scales",
        short="Scales",
        title="Scales through the graph",
        lead="The RMS of every value and of its gradient, in the order in which they are computed. "
        "A bar is a folded module: from its smallest RMS to its largest, with the median. Click it "
        "to unfold; click a value for its source and derivation.",
    ),
    Section(
        id="exponents",
        short="Exponents",
        title="Exponents of the elements",
        lead="The distribution of the magnitudes of each value over powers of two. Elements below "
        "the dotted line become zero in the format; elements above the upper line saturate.",
    ),
    Section(
        id="losses",
        short="Under- and overflow",
        title="Underflow and overflow",
        lead="The share of each value that each format would lose, if the value were cast as the "
        "graph holds it; a weight that stays true, at the scale of its cast. The worst are first.",
    ),
    Section(
        id="agreement",
        short="Prediction",
        title="Predicted and measured RMS",
        lead="The analysis knows the graph and the weights, but no data. Points off the diagonal "
        "are errors of a rule, or of its assumptions on distributions.",
    ),
    Section(
        id="noise",
        short="Noise",
        title="Signal to noise, layer by layer",
        lead="Signal to noise at each contraction, with the noise of its own casts and of all "
        "casts before it.",
    ),
    Section(
        id="values",
        short="Values",
        title="All values",
        lead="log₂ RMS of values and of gradients (∂), true and scaled. Open a row for its source "
        "line, its derivation and its rule.",
    ),
    Section(
        id="classes",
        short="Scale classes",
        title="Scale classes and rescales",
        lead="Values that share a scale, from left to right in the order of computation, at the "
        "height of their scale. Lines are the inserted rescales.",
    ),
    Section(
        id="casts",
        short="Recipe",
        title="Casts of the recipe",
        lead="The values that are cast, and the reason for every other value.",
    ),
    Section(
        id="drift",
        short="Drift",
        title="Drift in training",
        lead="Scales are chosen once, but weights change in training. This is the stored RMS that "
        "the monitor measured.",
    ),
    Section(
        id="findings",
        short="Left out",
        title="Left out",
        lead="Diagnostics of capture and of the recipe.",
    ),
)
