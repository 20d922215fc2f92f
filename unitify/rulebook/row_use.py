"""Does every key of a row do something? One that does not says what nobody hears.

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

#: Key → the keys of which one has to be there for it to do anything.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "even": ("law",),
    "only": ("law",),
    "defaults": ("law",),
    "terms": ("linear",),
    "coefficient": ("linear",),
    "window": ("terms",),
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
#: Ways to predict moments of which a row has one. (A formula beside ``linear`` without ``terms`` is
#: for operands that the model alone does not tell.)
_WAYS = (("terms", "forward"), ("linear", "elementwise"), ("elementwise", "forward"))


def idle(row: Row, arguments: Mapping[str, Argument]) -> Iterator[Problem]:
    """What of a row does nothing, and what it lacks for something to be done."""
    for key, needed in _NEEDS.items():
        if key in row.keys and not any(n in row.keys for n in needed):
            yield Problem((key,), f"it does nothing without {' or '.join(needed)}")
    for first, second in _WAYS:
        if first in row.keys and second in row.keys:
            yield Problem((second,), f"{first} gives the moments already")
    yield from _terms(row)
    yield from _products(row)
    yield from _unread(row)
    yield from _alone(row, arguments)
    for operand in row.rule.common.keys() - row.rule.backward.keys():
        yield Problem(("common", operand), "backward has no formula that it could stand beside")


def _terms(row: Row) -> Iterator[Problem]:
    """Where terms are counted, they are of the result and of each operand."""
    rule = row.rule
    if not rule.terms:
        return
    for name in ("out", *rule.linear):
        if name not in rule.terms:
            yield Problem(("terms",), f"it does not count those of {name!r}")


def _products(row: Row) -> Iterator[Problem]:
    rule = row.rule
    if rule.inside and not rule.casts:
        yield Problem(("inside",), "it does nothing without casts")
    for name in rule.cached:
        if name not in rule.casts:
            yield Problem(("cached", name), "it is none of the operands that may be cast")
    if rule.pads and (len(rule.linear) != 2 or rule.matmul is not None):
        yield Problem(("pads",), "it does nothing but for two linear operands without matmul")
    if rule.matmul is not None and {rule.matmul.left, rule.matmul.right} != set(rule.products):
        yield Problem(("matmul",), "it is not of the operands whose products are summed")
    for name in rule.contracts:
        if rule.matmul is not None or name not in rule.casts:
            yield Problem(("contracts", name), "it does nothing but for a cast operand, no matmul")
    if rule.law is not None:
        formulas = {s for f in _formulas(row) for s in named_in(f).symbols}
        for name in rule.law.defaults:
            if name not in rule.law.factors and name not in formulas:
                yield Problem(("defaults", name), "neither the law nor a formula asks for it")


def _unread(row: Row) -> Iterator[Problem]:
    """Names that the row gives and nothing names, and what only some formulas use."""
    formulas = _formulas(row)
    named = {s for f in formulas for s in named_in(f).symbols} | {row.rule.width}
    for key in ("dims", "where"):
        for name in row.keys.get(key, ()):
            if name not in named:
                yield Problem((key, name), f"nothing names {name!r}")
    operands = {name for f in formulas for _, name in named_in(f).moments}
    for name in row.rule.channels:
        if name not in operands and name not in row.rule.backward:
            yield Problem(("channels",), f"no formula is of {name!r}")
    if row.rule.over is not None and not _runs_over(row, formulas, named):
        yield Problem(("over",), "nothing is averaged, and nothing is balanced over it")
    for name, said in row.rule.balanced.items():
        if isinstance(said, str) and row.rule.over is None:
            yield Problem(("balanced", name), "the row has no over")


def _runs_over(row: Row, formulas: list[sympy.Expr], named: set[str | None]) -> bool:
    is_balanced = any(isinstance(said, str) for said in row.rule.balanced.values())
    return is_balanced or "over.numel" in named or any(named_in(f).averaged for f in formulas)


def _alone(row: Row, arguments: Mapping[str, Argument]) -> Iterator[Problem]:
    """A function of one operand has no other."""
    if row.rule.elementwise is None:
        return
    for name, argument in arguments.items():
        is_operand = argument.kind in ("tensor", "tensors") and argument.is_needed
        if name != row.rule.elementwise and is_operand and not argument.is_optional:
            yield Problem(("elementwise",), f"the operation is a function of {name!r}, too")


def _formulas(row: Row) -> list[sympy.Expr]:
    """Every formula of a row, as it is written: with its shorthands."""
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
