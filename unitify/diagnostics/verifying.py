"""U5: the result is not what it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class NotExact(Diagnostic):
    """The transformed module is not bitwise the original.

    This is a bug of unitify unless the original has values outside the normal range
    of its number format (subnormals, overflow), where power-of-two scaling rounds.

    Example: a model whose gradients are so small that they are subnormal.
    Fix: report it with the model; ``Verification.differences`` names what differs. With
    ``verify=False`` (``--no-verify``) the module is returned regardless.
    """

    code: ClassVar[str] = "U501"
    why: ClassVar[str] = "the result is not bitwise the original: {differences}"
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
