"""U5: verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class NotExact(Diagnostic):
    """The transformed module is not the original, and rounding does not explain it.

    The recording computes what the model does; its rescaled form does not. This is a bug of unitify
    unless the original overflows the range of its number format, or multiplies what underflowed
    (U503) up again.

    Example: a model whose contractions are beyond the largest number of the format.
    Fix: report it with the model; ``Verification.differences`` names what differs. With
    ``verify=False`` (``--no-verify``) the module is returned regardless.
    """

    code: ClassVar[str] = "U501"
    why: ClassVar[str] = "the module is not bitwise the model: {differences}"
    fix: ClassVar[str] = "Please report it; verify=False returns the module regardless"
    differences: str


@dataclass(frozen=True)
class WrongFactor(Diagnostic):
    """The emitted graph does not follow the one equation.

    Found by the checker that walks the original graph, the emitted graph and the plan
    without running them.

    Example: a graph edited after ``transform``, so that a rescale is missing or doubled.
    Fix: transform again; if the graph was not edited this is a bug of unitify, please report it.
    """

    code: ClassVar[str] = "U502"
    why: ClassVar[str] = "{value}: {problem}"
    fix: ClassVar[str] = "Please report it"
    value: str
    problem: str


@dataclass(frozen=True)
class Underflow(Diagnostic):
    """Some values of the original are below the normal range of its number format.

    Numbers smaller than the smallest normal one (1.2e-38 in float32) are stored in fixed steps, so
    that they round in the original and not at unit scale. The result is the more precise of the
    two; it differs by less than the smallest normal number, and nowhere else.

    Example: a pretrained network with channels that are all but dead has gradients like 1e-42.
    Fix: none is needed.
    """

    code: ClassVar[str] = "U503"
    why: ClassVar[str] = "{tensors} tensors differ below the smallest normal number, first {first}"
    fix: ClassVar[str] = "None is needed: the original itself has no precision there"
    tensors: int
    first: str


@dataclass(frozen=True)
class RoundsOtherwise(Diagnostic):
    """Some results differ from the model's in their last bits, and are as near to the right ones.

    Other kernels, or another order of a sum, round otherwise. Both were measured against the
    original in double precision: the module's error is of the size of the model's own.

    Example: a model that looks at the numbers of a mask and leaves it out where it masks nothing; a
    recording cannot look at numbers and takes the kernel with a mask.
    Fix: none is needed, unless every bit is: ``Verification.rounding`` names what differs.
    """

    code: ClassVar[str] = "U504"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{tensors} results round differently from the model's, first {first}"
    fix: ClassVar[str] = "None is needed: they are as near to the right ones as the model's"
    tensors: int
    first: str


@dataclass(frozen=True)
class GradientsUnderflow(Diagnostic):
    """Some gradients of a float16 model are below the normal range of its type.

    Numbers below 6.1e-5 are stored in fixed steps of 6e-8, so that they have few digits or none.
    The transformed module does the same: its gradients are bitwise those of the model.

    Example: a model in half precision, whose loss is a mean over many tokens, without a loss
    scaler.
    Fix: scale the loss (``torch.amp.GradScaler``); or keep the model in float32 and transform it
    with ``recipe="fp16"``, which needs no loss scaling.
    """

    code: ClassVar[str] = "U505"
    is_loss: ClassVar[bool] = True
    why: ClassVar[str] = "{percent:.1f} % of one of the model's gradients are subnormal in float16"
    fix: ClassVar[str] = 'Scale the loss, or transform the model in float32 with recipe="fp16"'
    percent: float
