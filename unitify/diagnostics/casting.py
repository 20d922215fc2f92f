"""U4: recipes and casts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unitify.diagnostics.diagnostic import Diagnostic


@dataclass(frozen=True)
class UnknownRecipe(Diagnostic):
    """There is no recipe of the given name.

    Example: ``transform(model, recipe="fp9")``.
    Fix: use one of the listed names, or pass a ``unitify.Recipe``.
    """

    code: ClassVar[str] = "U401"
    why: ClassVar[str] = "there is no recipe {name!r}"
    fix: ClassVar[str] = "Known recipes: {known}"
    name: str
    known: str
