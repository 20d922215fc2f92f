"""U8: what ``unitify check`` finds in a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class OutsideUnitBand(Diagnostic):
    """A tensor is stored far from unit RMS (checked so with ``format = "unit"``).

    Near unit RMS a tensor has the same distance from both ends of every number format.

    Example: a weight that is initialized with a standard deviation of 0.02.
    Fix: scale it where it is made; or transform the model (with scales measured on your data,
    where the prediction is off), which stores every tensor near one.
    """

    code: ClassVar[str] = "U801"
    why: ClassVar[str] = "the RMS {rms:.3g} of the {tensor} is not within {low:.3g} to {high:.3g}"
    fix: ClassVar[str] = "{advice}"
    tensor: str
    rms: float
    low: float
    high: float
    advice: str


@dataclass(frozen=True)
class PrecisionLost(Diagnostic):
    """A tensor's RMS is where the number format has few digits, or none.

    The message gives the signal to noise that the format keeps, in decibels: E[x²] over the mean
    square of the rounding error, for the measured tensor or for a normal distribution of this RMS.
    Every format keeps about the same over a range of RMS, and quickly less outside.

    Example: a gradient of RMS 1e-6 in E5M2, whose smallest number is 1.5e-5.
    Fix: scale it where it is made; or transform the model (with scales measured on your data,
    where the prediction is off), which stores every tensor near one.
    """

    code: ClassVar[str] = "U802"
    why: ClassVar[str] = (
        "the {tensor} of RMS {rms:.3g} keeps {kept:.1f} dB in {format}, which can keep {best:.1f}"
    )
    fix: ClassVar[str] = "{advice}"
    tensor: str
    rms: float
    format: str
    kept: float
    best: float
    advice: str


@dataclass(frozen=True)
class FlushedToZero(Diagnostic):
    """A share of a tensor's elements that are not zero becomes zero in the number format.

    A number below half of the smallest number of the format becomes zero. The share is measured, or
    is that of a normal distribution with the predicted RMS.

    Example: an embedding that is initialized with a standard deviation of 1e-5, cast to E4M3.
    Fix: scale it where it is made; or transform the model (with scales measured on your data,
    where the prediction is off), which stores every tensor near one.
    """

    code: ClassVar[str] = "U803"
    why: ClassVar[str] = "{share:.1%} of the {tensor} of RMS {rms:.3g} become zero in {format}"
    fix: ClassVar[str] = "{advice}"
    tensor: str
    share: float
    rms: float
    format: str
    advice: str


@dataclass(frozen=True)
class Saturated(Diagnostic):
    """A share of a tensor's elements is beyond the largest number of the format.

    These elements become that number, or infinity. The share is measured, or is that of a normal
    distribution with the predicted RMS.

    Example: logits that are multiplied by 10,000, cast to E4M3, whose largest number is 448.
    Fix: scale it where it is made; or transform the model (with scales measured on your data,
    where the prediction is off), which stores every tensor near one.
    """

    code: ClassVar[str] = "U804"
    why: ClassVar[str] = "{share:.1%} of the {tensor} of RMS {rms:.3g} are out of range in {format}"
    fix: ClassVar[str] = "{advice}"
    tensor: str
    share: float
    rms: float
    format: str
    advice: str


@dataclass(frozen=True)
class ValueNotFinite(Diagnostic):
    """A tensor holds NaN or infinity, or is predicted to. Values of masks do not count.

    Example: ``torch.exp(x)`` of an x of RMS 100.
    Fix: no scale helps once a value has overflowed in the model's own type: subtract a maximum,
    bound the argument, or use a wider type.
    """

    code: ClassVar[str] = "U805"
    why: ClassVar[str] = "the {tensor} is not finite ({count})"
    fix: ClassVar[str] = "Bound the values that lead to it, or compute it in a wider type"
    tensor: str
    count: str


@dataclass(frozen=True)
class GradientStops(Diagnostic):
    """Trainable parameters get no gradient: the backward pass stops before it reaches them.

    In a fused projection that may be a part of a parameter: the rows of queries and keys alone.

    Example: ``x = x + self.side(x).detach()``: the weights of ``side`` never change.
    Fix: remove the detachment; or freeze the parameters (``requires_grad_(False)``) if you want it.
    """

    code: ClassVar[str] = "U806"
    why: ClassVar[str] = "{operation} stops the gradient of {parameters}"
    fix: ClassVar[str] = "Let the gradient through, or freeze the parameters"
    operation: str
    parameters: str


@dataclass(frozen=True)
class ScaleDrift(Diagnostic):
    """A tensor's RMS is far from the scale that the module's plan gives it.

    The plan belongs to other weights or inputs, or its prediction was off. At that scale the stored
    tensor is so many octaves from unit RMS.

    Example: a folder that was converted before the end of training, checked with the final weights.
    Fix: make a new plan: convert again, or ``unitify.rebase_`` the module.
    """

    code: ClassVar[str] = "U807"
    why: ClassVar[str] = (
        "the {tensor} has RMS {rms:.3g}, {octaves:+.1f} octaves from its scale {scale} in the plan"
    )
    fix: ClassVar[str] = "Convert again, or unitify.rebase_ the module"
    tensor: str
    rms: float
    octaves: float
    scale: str


@dataclass(frozen=True)
class PlanDiffers(Diagnostic):
    """A plan made now is not the one that was committed.

    Example: ``unitify check pkg:build --plan plan.json`` after the model was changed.
    Fix: look at what changed it; then commit the new plan.
    """

    code: ClassVar[str] = "U808"
    why: ClassVar[str] = "the plan gives the {tensor} the scale {scale}, {path} has {committed}"
    fix: ClassVar[str] = "Find out what changed it, then commit the new plan"
    tensor: str
    scale: str
    committed: str
    path: str


@dataclass(frozen=True)
class NothingJudged(Diagnostic):
    """No tensor of the model was judged, so nothing can be said of it.

    Example: ``unitify check`` of a model without floating-point operations, or with a ``--select``
    that matches none of its tensors.
    Fix: select names as a check without ``--select`` prints them; give the model that computes.
    """

    code: ClassVar[str] = "U809"
    why: ClassVar[str] = "no tensor was judged: {problem}"
    fix: ClassVar[str] = "Give a model that computes, and names that it has"
    problem: str
