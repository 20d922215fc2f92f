"""The parts of a report's page: their titles, and what a reader is told before each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the page, which the script of its ``id`` fills. ``short``: in the bar above."""

    id: str
    short: str
    title: str
    lead: str


SECTIONS = (
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
        lead="How the magnitudes of each value are spread over powers of two. What lies below the "
        "dotted line becomes zero in the format; what lies above the upper line saturates.",
    ),
    Section(
        id="losses",
        short="Under- and overflow",
        title="Underflow and overflow",
        lead="What each format would lose of each value, were it cast as the graph holds it. Worst "
        "first.",
    ),
    Section(
        id="agreement",
        short="Prediction",
        title="Predicted and measured RMS",
        lead="The analysis knows the graph and the weights, but no data. Points off the diagonal "
        "tell of a rule, or of a distribution, that it does not know.",
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
        lead="log₂ RMS of values and of gradients (∂), true and as stored. Open a row for the line "
        "of source that made it, its derivation and its rule.",
    ),
    Section(
        id="classes",
        short="Scale classes",
        title="Scale classes and rescales",
        lead="Values that share a scale, from left to right as they are computed, at the height of "
        "their scale. Lines are the rescales that were inserted.",
    ),
    Section(
        id="casts",
        short="Recipe",
        title="What the recipe touches",
        lead="What is cast, and for everything else why not.",
    ),
    Section(
        id="drift",
        short="Drift",
        title="Drift in training",
        lead="Scales are chosen once, and weights move. Stored RMS as the monitor read it.",
    ),
    Section(
        id="findings",
        short="Left out",
        title="Left out",
        lead="What capture or the recipe could not keep.",
    ),
)
