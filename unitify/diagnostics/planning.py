"""U3: plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class PlanMismatch(Diagnostic):
    """A plan does not belong to the graph that it is applied to.

    Plans are keyed by value names; another version of the model, of torch or of
    transformers may name or order values differently.

    Example: ``unitify.load("converted-gpt2", bert)``.
    Fix: pass the model (and the example inputs) that was converted, transform again, or install
    the versions that the plan names.
    """

    code: ClassVar[str] = "U301"
    why: ClassVar[str] = "the plan does not fit the graph: {problem}"
    fix: ClassVar[str] = "Transform again, or install the versions that the plan names"
    problem: str


@dataclass(frozen=True)
class ScaleNotAllowed(Diagnostic):
    """A scale of a plan is not a power of two, or scales a value that must stay true.

    Example: a plan edited by hand so that a model input has the scale 2.
    Fix: use powers of two; leave inputs, outputs, buffers and masks at one.
    """

    code: ClassVar[str] = "U302"
    why: ClassVar[str] = "the scale {scale} of {value} is not allowed: {problem}"
    fix: ClassVar[str] = "Use powers of two, and one where the value must stay true"
    value: str
    scale: str
    problem: str


@dataclass(frozen=True)
class RescalesNotFewest(Diagnostic):
    """A plan is exact, but another one may need fewer rescales.

    The fewest are found by solving an integer program. For some graphs there is no time for its
    proof: the best plan that was found is taken, and the gap says how much of what its rescales
    cost another might save. A graph of very many nodes gets the nearest scale of each value alone.

    Example: a model of more than 50,000 operations, recorded whole.
    Fix: nothing has to be fixed. ``placement="casts"`` needs no search; submodules that are
    transformed one by one have smaller graphs.
    """

    code: ClassVar[str] = "U303"
    why: ClassVar[str] = "its rescales may not be the fewest: {problem}"
    fix: ClassVar[str] = 'Exact as it is; placement="casts" needs no search'
    problem: str
