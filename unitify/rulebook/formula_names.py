"""The names in a formula, and names that a typing error would confuse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy
from sympy.core.function import AppliedUndef

from unitify.rulebook.expressions import AVERAGE, LARGEST, MOMENTS

_MOMENT_FUNCTIONS = frozenset(MOMENTS.values())


@dataclass(frozen=True)
class FormulaNames:
    """What a formula names.

    ``symbols``: numbers (``x`` within ``mean(x)`` is not one); ``moments``: ``mean(x)``, ``rms(x)``
    and so on, as (text, x); ``averaged``: calls that run over the row's ``over``; ``applied``:
    every call whose value needs moments.
    """

    symbols: frozenset[str]
    moments: tuple[tuple[str, str], ...]
    averaged: tuple[str, ...]
    applied: tuple[str, ...]


@lru_cache(maxsize=4096)
def named_in(formula: sympy.Expr) -> FormulaNames:
    """The names in ``formula``. Cached, because formulas recur within rows and across rows."""
    symbols: set[str] = set()
    walk = sympy.preorder_traversal(formula)
    for part in walk:
        if part.func in _MOMENT_FUNCTIONS:
            walk.skip()
        elif part.is_Symbol:
            symbols.add(part.name)
    applied = sorted(formula.atoms(AppliedUndef), key=str)
    return FormulaNames(
        frozenset(symbols),
        tuple((str(a), str(a.args[0])) for a in applied if a.func in _MOMENT_FUNCTIONS),
        tuple(str(a) for a in applied if a.func in (AVERAGE, LARGEST) and len(a.args) == 1),
        tuple(map(str, applied)),
    )


def one_slip_apart(first: str, second: str) -> bool:
    """Does one missing character, or two exchanged neighbors, turn one name into the other?"""
    return first in slips(second) or second in slips(first)


def slips(name: str) -> set[str]:
    """The name with one character left out, or with two neighbors exchanged, in every way."""
    indices = range(len(name))
    left_out = {name[:i] + name[i + 1 :] for i in indices}
    exchanged = {name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :] for i in indices}
    return (left_out | exchanged) - {name}
