"""``About``: what a transformed module knows of how it was made, beside its graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unitify.diagnostics import Diagnostic
from unitify.recipe.recipe import Recipe
from unitify.verification import Verification


@dataclass(frozen=True)
class About:
    """``recipe`` and ``verification`` (the one before the casts): None without one.

    - ``diagnostics``: what was not kept, and what the user should know
    - ``scales``: the source of the plan's scales, "measured" or "analysis"; "" where unknown
    - ``again(model, args, kwargs)``: transforms a model of other number types in the same way
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    recipe: Recipe | None = None
    scales: str = ""
    verification: Verification | None = None
    again: Callable[..., Any] | None = None
