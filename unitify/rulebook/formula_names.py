"""The names in a formula, and names that a slip would exchange."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy
from sympy.core.function import AppliedUndef

from unitify.rulebook.expressions import AVERAGE, LARGEST, MOMENTS

_MOMENT_FUNCTIONS = frozenset(MOMENTS.values())


@dataclass(frozen=True)
class Named:
    """What a formula names.

    ``symbols``: numbers (an operand of which it has moments is none); ``moments``: ``mean(x)`` and
    its like, as (text, x); ``averaged``: what runs over the row's ``over``; ``applied``: every call
    that takes moments to mean something.
    """

    symbols: frozenset[str]
    moments: tuple[tuple[str, str], ...]
    averaged: tuple[str, ...]
    applied: tuple[str, ...]


@lru_cache(maxsize=4096)
def named_in(formula: sympy.Expr) -> Named:
    """What ``formula`` names. Formulas recur within rows and from row to row."""
    symbols: set[str] = set()
    walk = sympy.preorder_traversal(formula)
    for part in walk:
        if part.func in _MOMENT_FUNCTIONS:
            walk.skip()
        elif part.is_Symbol:
            symbols.add(part.name)
    applied = sorted(formula.atoms(AppliedUndef), key=str)
    return Named(
        frozenset(symbols),
        tuple((str(a), str(a.args[0])) for a in applied if a.func in _MOMENT_FUNCTIONS),
        tuple(str(a) for a in applied if a.func in (AVERAGE, LARGEST) and len(a.args) == 1),
        tuple(map(str, applied)),
    )


def one_slip_apart(first: str, second: str) -> bool:
    """Does leaving out a character, or exchanging two neighbors, make one name of the other?"""
    return first in slips(second) or second in slips(first)


def slips(name: str) -> set[str]:
    """What a name becomes with one character left out, or two neighbors exchanged."""
    places = range(len(name))
    left_out = {name[:i] + name[i + 1 :] for i in places}
    exchanged = {name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :] for i in places}
    return (left_out | exchanged) - {name}
