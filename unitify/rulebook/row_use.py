"""Checks that every key of a row has an effect.

Takes a ``Row`` and the arguments of its operation by name; gives problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sympy

from unitify.rulebook.expressions import parse_formula
from unitify.rulebook.formula_names import named_in
from unitify.rulebook.row_reader import Problem, Row
from unitify.rulebook.schema import Argument

#: Key → others; without one of them the key has no effect.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "even": ("law",),
    "only": ("law",),
    "defaults": ("law",),
    "terms": ("linear",),
    "coefficient": ("linear",),
    "backward": ("forward",),
    "broadcast": ("backward",),
    "common": ("backward",),
    "channels": ("forward", "statistics"),
    "statistics": ("initial",),
    "initial": ("statistics",),
    "width": ("logits",),
    "loss": ("logits",),
    "variants": ("sample",),
}
#: Ways to predict moments, of which a row has one. (A formula beside ``linear`` without ``terms``
#: is for operands that are unknown without data.)
_WAYS = (
    ("terms", "forward"), ("linear", "elementwise"), ("elementwise", "forward"),
    ("elementwise", "window"), ("forward", "window"),
)  # fmt: skip


def idle(row: Row, arguments: Mapping[str, Argument]) -> Iterator[Problem]:
    """Keys of a row that have no effect, and keys that others need."""
    for key, needed in _NEEDS.items():
        if key in row.keys and not any(n in row.keys for n in needed):
            yield Problem((key,), f"it has no effect without {' or '.join(needed)}")
    for first, second in _WAYS:
        if first in row.keys and second in row.keys:
            yield Problem((second,), f"{first} already gives the moments")
    yield from _terms(row)
    yield from _contraction(row)
    yield from _unread(row)
    yield from _alone(row, arguments)
    for operand in row.rule.common.keys() - row.rule.backward.keys():
        yield Problem(("common", operand), "backward has no formula for this operand")


def _terms(row: Row) -> Iterator[Problem]:
    """Terms must be counted for the result and for each operand, or for none."""
    rule = row.rule
    if not rule.terms:
        return
    for name in ("out", *rule.linear):
        if name not in rule.terms:
            yield Problem(("terms",), f"it has no count for {name!r}")


def _contraction(row: Row) -> Iterator[Problem]:
    rule = row.rule
    if rule.inside and not rule.casts:
        yield Problem(("inside",), "it has no effect without casts")
    for name in rule.cached:
        if name not in rule.casts:
            yield Problem(("cached", name), "it is not one of the row's casts")
    if rule.pads and (len(rule.linear) != 2 or rule.matmul is not None):
        yield Problem(("pads",), "it needs two linear operands and no matmul")
    if rule.matmul is not None and {rule.matmul.left, rule.matmul.right} != set(rule.contraction):
        yield Problem(("matmul",), "its operands are not those of the contraction")
    for name in rule.contracts:
        if rule.matmul is not None or name not in rule.casts:
            yield Problem(("contracts", name), "it needs an operand of casts and no matmul")
    if rule.law is not None:
        formulas = {s for f in _formulas(row) for s in named_in(f).symbols}
        for name in rule.law.defaults:
            if name not in rule.law.factors and name not in formulas:
                yield Problem(("defaults", name), "neither the law nor a formula uses it")


def _unread(row: Row) -> Iterator[Problem]:
    """Names that no formula uses, and ``channels`` or ``over`` without a formula for them."""
    formulas = _formulas(row)
    named = {s for f in formulas for s in named_in(f).symbols} | {row.rule.width}
    for key in ("dims", "where"):
        for name in row.keys.get(key, ()):
            if name not in named:
                yield Problem((key, name), f"no formula uses {name!r}")
    operands = {name for f in formulas for _, name in named_in(f).moments}
    for name in row.rule.channels:
        if name not in operands and name not in row.rule.backward:
            yield Problem(("channels",), f"no formula uses {name!r}")
    if row.rule.over is not None and not _runs_over(row, formulas, named):
        yield Problem(("over",), "no average and no balanced operand runs over it")
    for name, said in row.rule.balanced.items():
        if isinstance(said, str) and row.rule.over is None:
            yield Problem(("balanced", name), "the row has no over")


def _runs_over(row: Row, formulas: list[sympy.Expr], named: set[str | None]) -> bool:
    is_balanced = any(isinstance(said, str) for said in row.rule.balanced.values())
    return is_balanced or "over.numel" in named or any(named_in(f).averaged for f in formulas)


def _alone(row: Row, arguments: Mapping[str, Argument]) -> Iterator[Problem]:
    """An elementwise function has one operand only."""
    if row.rule.elementwise is None:
        return
    for name, argument in arguments.items():
        is_operand = argument.kind in ("tensor", "tensors") and argument.is_needed
        if name != row.rule.elementwise and is_operand and not argument.is_optional:
            yield Problem(("elementwise",), f"the operation also depends on {name!r}")


def _formulas(row: Row) -> list[sympy.Expr]:
    """Every formula of a row as it is written, with shorthands."""
    rule = row.rule
    tables = [row.keys.get(key, {}) for key in ("forward", "backward", "statistics", "common")]
    return [
        *row.where.values(),
        *rule.dims.values(),
        *rule.terms.values(),
        rule.coefficient,
        *(parse_formula(text) for table in tables for text in _texts(table)),
    ]


def _texts(table: Any) -> Iterator[str]:
    for value in table.values() if isinstance(table, Mapping) else (table,):
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value)
