"""The keys of a row of a rule file, and the form of the value of each.

A reader turns a value of TOML into a field of ``Rule``, or raises ``RowError``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sympy

from unitify.rulebook.expressions import ExpressionError, parse_formula, parse_monomial
from unitify.rulebook.rule import Common, Matmul, Moments

Reader = Callable[[Any], Any]


class RowError(ExpressionError):
    """A value does not have the form that its key requires. ``path``: the keys below that one."""

    def __init__(self, text: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.path = path


def close_to(name: str, others: Iterable[str]) -> str:
    """``; did you mean …?`` with the most similar name; "" without one."""
    close = difflib.get_close_matches(name, others, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def known(table: Mapping[str, Any], key: str, what: str) -> Any:
    """The value of ``key`` in a table. Raises ``RowError`` for any other key."""
    if key not in table:
        raise RowError(f"{what} has no key {key!r}{close_to(key, table)}")
    return table[key]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise RowError(f"{value!r} is not text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RowError(f"{value!r} is neither true nor false")
    return value


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or math.isnan(value) or (isinstance(value, int) and abs(value) >= 2**64):
        raise RowError(f"{str(value)[:60]} is not a number")
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(f"{value!r} is not an integer")
    return value


def _formula(value: Any) -> sympy.Expr:
    return parse_formula(_text(value))


def _list_of(read: Reader) -> Reader:
    def read_list(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise RowError(f"{value!r} is not a list with entries")
        found = tuple(read(item) for item in value)
        if any(item in found[:i] for i, item in enumerate(found)):
            raise RowError(f"{value!r} has an entry twice")
        return found

    return read_list


def _table_of(read: Reader) -> Reader:
    def read_table(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not value:
            raise RowError(f"{value!r} is not a table with keys")
        found = {}
        for name, item in value.items():
            try:
                found[name] = read(item)
            except ExpressionError as error:
                raise RowError(str(error), (name, *getattr(error, "path", ()))) from None
        return found

    return read_table


def _table_with(keys: Mapping[str, Reader]) -> Reader:
    """A table of these keys alone."""

    def read_table(value: Any) -> dict[str, Any]:
        held = _table_of(lambda item: item)(value)
        found = {}
        for name, item in held.items():
            try:
                found[name] = known(keys, name, "this table")(item)
            except ExpressionError as error:
                raise RowError(str(error), (name, *getattr(error, "path", ()))) from None
        return found

    return read_table


def _matching(pattern: str) -> Reader:
    def read(value: Any) -> str:
        if not re.fullmatch(pattern, _text(value)):
            raise RowError(f"{value!r} does not match {pattern}")
        return str(value)

    return read


def _either(first: Reader, second: Reader) -> Reader:
    """The first reader for a list, the second for everything else."""
    return lambda value: (first if isinstance(value, list | tuple) else second)(value)


def _law(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _table_of(parse_monomial)(value)
    if "out" not in found:
        raise RowError("a law needs the scale of its result (out)")
    return found


def _named_formulas(value: Any) -> dict[str, sympy.Expr]:
    found: dict[str, sympy.Expr] = _table_of(_formula)(value)
    for name in found:
        if not name.isidentifier():
            raise RowError(f"{name!r} is not a name", (name,))
    return found


_MOMENT = _table_with(dict.fromkeys(("mean", "square", "rms", "var"), _formula))


def _moments(value: Any) -> Moments:
    given = _MOMENT(value)
    mean = given.pop("mean", sympy.S.Zero)
    if len(given) != 1:
        raise RowError("moments need exactly one of square, rms and var, and may have a mean")
    ((name, formula),) = given.items()
    squares = {"square": formula, "rms": formula**2, "var": formula + mean**2}
    return Moments(mean, squares[name])


_COMMON = _table_with({"along": _list_of(_integer), "var": _formula})


def _common(value: Any) -> Common:
    found = _COMMON(value)
    if len(found) != 2:
        raise RowError("common needs a var and the dimensions along which elements share it")
    return Common(found["along"], Moments(found["var"], found["var"]))


def _domain(value: Any) -> tuple[float, float]:
    found = _list_of(_number)(value)
    if len(found) != 2 or not found[0] < found[1]:
        raise RowError(f"{value!r} is not a list of the least and the greatest number")
    return found[0], found[1]


_MATMUL = re.compile(r"(\w+) @ (\w+)(\.T)?(?: \+ (\w+))?")


def _matmul(value: Any) -> Matmul:
    found = _MATMUL.fullmatch(_text(value))
    if found is None:
        raise RowError(f"{value!r} does not match 'left @ right.T + bias'")
    left, right, transposed, bias = found.groups()
    return Matmul(left, right, transposed is not None, bias)


def _as_it_is(value: Any) -> Any:
    return value


_names, _dimensions, _arguments = _list_of(_text), _list_of(_integer), _table_of(_as_it_is)

#: Every key of a row, and the form of its value.
KEYS: Mapping[str, Reader] = {
    "law": _law,
    "even": parse_monomial,
    "only": _table_of(_list_of(_as_it_is)),
    "defaults": _table_of(_formula),
    "dims": _named_formulas,
    "where": _named_formulas,
    "linear": _names,
    "terms": _table_of(_formula),
    "coefficient": _formula,
    "window": _flag,
    "pads": _text,
    "elementwise": _text,
    "forward": _moments,
    "backward": _table_of(_moments),
    "common": _table_of(_common),
    "over": _either(_dimensions, _matching(r"(trailing|argument):\w+|except:\d+")),
    "channels": _names,
    "broadcast": _flag,
    "true_gradient": _flag,
    "contraction": _names,
    "casts": _names,
    "cached": _names,
    "inside": _text,
    "matmul": _matmul,
    "contracts": _table_of(lambda v: _text(v) if isinstance(v, str) else _integer(v)),
    "unit": _flag,
    "parameters": _table_of(_matching("bias|gain|table")),
    "logits": _text,
    "loss": _flag,
    "width": _text,
    "weighs": _text,
    "creates": _flag,
    "statistics": _table_of(_moments),
    "initial": _table_of(_number),
    "domain": _table_of(_domain),
    "corners": _names,
    "balanced": _table_of(_either(_dimensions, _matching(r"over( if \w+)?"))),
    "sample": _arguments,
    "variants": lambda value: [_arguments(v) for v in _list_of(_as_it_is)(value)],
    "source": _text,
    "replaces": _flag,
}
