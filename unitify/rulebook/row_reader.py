"""Reads a row of a rule file into a ``Rule``: every key must be known and have its form.

Takes a mapping as TOML gives it; gives a ``Row``. ``row_names`` checks the names in it, and
``row_use`` that every key does something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sympy

from unitify.rulebook.expressions import ExpressionError, check_bounded
from unitify.rulebook.row_forms import KEYS, known
from unitify.rulebook.rule import Common, Law, Moments, Rule


@dataclass(frozen=True)
class Problem:
    """A problem of a row, and the path of keys to it."""

    path: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Row:
    """A row as it was read.

    ``keys``: its keys, with those taken from another row by ``like``; ``where``: its shorthands by
    name, as they are written. In ``rule`` the shorthands are expanded.
    """

    keys: Mapping[str, Any]
    where: Mapping[str, sympy.Expr]
    rule: Rule


def read_row(operation: str, row: Any) -> tuple[Row | None, list[Problem]]:
    """The row of an operation, or the problems of its form."""
    if not isinstance(row, Mapping):
        return None, [Problem((), "it is not a table")]
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
    try:
        meant = _replaced(where)
    except ExpressionError as error:
        return None, [Problem(("where",), str(error))]
    for key in ("forward", "backward", "statistics", "common"):
        if key in found:
            found[key] = _with(found[key], meant)
    law = {key: found.pop(key) for key in ("even", "only", "defaults") if key in found}
    if "law" in found:
        factors = dict(found["law"])
        found["law"] = Law(factors.pop("out"), factors, **law)
    found.setdefault("contraction", _contraction(found))
    found.setdefault("casts", found["contraction"])
    found.setdefault("unit", bool(found["contraction"]))
    sample = found.get("sample", {})
    found["variants"] = tuple({**sample, **changes} for changes in found.get("variants", ()))
    return Row(row, where, Rule(operation, **found)), []


def _contraction(found: Mapping[str, Any]) -> tuple[str, ...]:
    linear: tuple[str, ...] = found.get("linear", ())
    return linear if len(linear) == 2 and found.get("terms", {}).get("out", 1) != 1 else ()


def _replaced(where: Mapping[str, sympy.Expr]) -> dict[sympy.Symbol, sympy.Expr]:
    """Shorthands, with earlier ones expanded in them."""
    meant: dict[sympy.Symbol, sympy.Expr] = {}
    for name, formula in where.items():
        meant[sympy.Symbol(name)] = formula.xreplace(meant)
        check_bounded(meant[sympy.Symbol(name)])
    return meant


def _with(held: Any, meant: Mapping[sympy.Symbol, sympy.Expr]) -> Any:
    if isinstance(held, Mapping):
        return {name: _with(one, meant) for name, one in held.items()}
    if isinstance(held, Common):
        return replace(held, var=_with(held.var, meant))
    return Moments(held.mean.xreplace(meant), held.square.xreplace(meant))
