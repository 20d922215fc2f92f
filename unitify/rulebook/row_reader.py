"""A row of a rule file read into a ``Rule``: every key is known and of its form.

Takes a mapping as TOML gives it; gives a ``Row``. Whether names in it mean anything, and every key
does something, is for ``row_names`` and ``row_use`` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from unitify.rulebook.expressions import ExpressionError
from unitify.rulebook.row_forms import KEYS, known
from unitify.rulebook.rule import Common, Law, Moments, Rule


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row, and the keys under which it stands."""

    path: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Row:
    """A row as it was read.

    ``keys``: what it holds, with what it took over from another row; ``where``: its shorthands by
    name, as they are written. ``rule`` has them replaced by what they stand for.
    """

    keys: Mapping[str, Any]
    where: Mapping[str, sympy.Expr]
    rule: Rule


def read_row(operation: str, row: Any) -> tuple[Row | None, list[Problem]]:
    """The row of an operation, or what is wrong with its form."""
    if not isinstance(row, Mapping):
        return None, [Problem((), "it is no table of keys")]
    problems: list[Problem] = []
    found: dict[str, Any] = {}
    for key, value in row.items():
        try:
            found[key] = known(KEYS, key, "a row")(value)
        except ExpressionError as error:
            problems.append(Problem((key, *getattr(error, "path", ())), str(error)))
    if problems:
        return None, problems
    where = found.pop("where", {})
    meant = _replaced(where)
    for key in ("forward", "backward", "statistics", "common"):
        if key in found:
            found[key] = _with(found[key], meant)
    law = {key: found.pop(key) for key in ("even", "only", "defaults") if key in found}
    if "law" in found:
        factors = dict(found["law"])
        found["law"] = Law(factors.pop("out"), factors, **law)
    found.setdefault("products", _summed_products(found))
    found.setdefault("casts", found["products"])
    found.setdefault("unit", bool(found["products"]))
    sample = found.get("sample", {})
    found["variants"] = tuple({**sample, **changes} for changes in found.get("variants", ()))
    return Row(row, where, Rule(operation, **found)), []


def _summed_products(found: Mapping[str, Any]) -> tuple[str, ...]:
    linear: tuple[str, ...] = found.get("linear", ())
    return linear if len(linear) == 2 and found.get("terms", {}).get("out", 1) != 1 else ()


def _replaced(where: Mapping[str, sympy.Expr]) -> dict[sympy.Symbol, sympy.Expr]:
    """Shorthands with those before them replaced."""
    meant: dict[sympy.Symbol, sympy.Expr] = {}
    for name, formula in where.items():
        meant[sympy.Symbol(name)] = formula.xreplace(meant)
    return meant


def _with(held: Any, meant: Mapping[sympy.Symbol, sympy.Expr]) -> Any:
    if isinstance(held, Mapping):
        return {name: _with(one, meant) for name, one in held.items()}
    if isinstance(held, Common):
        return replace(held, var=_with(held.var, meant))
    return Moments(held.mean.xreplace(meant), held.square.xreplace(meant))
