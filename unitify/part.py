"""``Part``: one graph of a model, on its way from capture to module.

    capture ─► estimates ─► plan ─► graph ─► choices

A stage takes parts and returns parts that know one thing more. Most models are one part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, fx

from unitify.capture.islands import path_of
from unitify.capture.whole import Capture
from unitify.estimates import Estimates
from unitify.plan.scale_plan import ScalePlan
from unitify.plan.uniform import uniform_plan
from unitify.recipe.cast import Cast
from unitify.recipe.choices import Choice


@dataclass(frozen=True)
class Part:
    """A captured graph, and the results of the stages for it.

    - ``name``: the path of its submodule, "" for the whole model. Further recordings of the same
      submodule end in ``@2``, ``@3``
    - ``plan``: every scale is one until a plan is chosen
    - ``graph``: the rewritten graph; that of the capture before
    - ``estimates``: RMS of every value; empty before the estimate stage
    - ``choices``: the choice of a recipe for every value; empty before the cast stage
    - ``constants``: further attributes that the graph with casts reads, by name
    """

    name: str
    capture: Capture
    plan: ScalePlan
    graph: fx.Graph
    estimates: Estimates = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path of this part's submodule."""
        return path_of(self.name)

    def casts(self) -> tuple[Cast, ...]:
        """Every cast of operands and gradients, in the graph's order."""
        return tuple(cast for choice in self.choices for cast in choice.casts)

    def with_casts(self, change: Callable[[Cast], Cast]) -> Part:
        """The part with every cast replaced by ``change`` of it."""
        choices = (replace(c, casts=tuple(map(change, c.casts))) for c in self.choices)
        return replace(self, choices=tuple(choices))

    def exponent(self, cast: Cast) -> int:
        """log2 of the scale by which a cast divides the true value, or its true gradient."""
        return self.plan.unit(cast.value).exponents[cast.is_gradient] + cast.exponent


def parts_of(captures: Mapping[str, Capture]) -> tuple[Part, ...]:
    """The parts of a recording, with every scale one."""
    return tuple(
        Part(name, capture, uniform_plan(capture), capture.graph)
        for name, capture in captures.items()
    )


def value_name(part: str, value: str) -> str:
    """The name of a part's value among those of all parts."""
    return f"{part}/{value}" if part else value
