"""Rows of JSON as frozen values: each field has the type that its class says, or it is an error.

Takes a dataclass and a mapping; gives an instance. The types are those of JSON, ``Literal``,
unions, tuples, mappings with texts for keys, and other such dataclasses.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def made(kind: type[Kind], row: Any) -> Kind:
    """The ``kind`` with the fields in ``row``, and no others.

    Raises ``ValueError``, which names the field, for anything else.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a {kind.__name__} is {_shown(row)}, not an object")
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    if unknown := sorted(row.keys() - hints.keys()):
        raise ValueError(f"a {kind.__name__} has no {unknown[0]!r}")
    needed = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}  # type: ignore[arg-type]
    if missing := sorted(needed - row.keys()):
        raise ValueError(f"a {kind.__name__} lacks {missing[0]!r}")
    found = {}
    for name, value in row.items():
        try:
            found[name] = _as(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return kind(**found)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _as(hint: Any, value: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint):
        return made(hint, value)  # type: ignore[arg-type]
    if origin is Literal and any(type(value) is type(one) and value == one for one in inner):
        return value
    if origin in (Union, types.UnionType):
        for one in inner:
            try:
                return _as(one, value)
            except ValueError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        if inner[-1] is ...:
            return tuple(_as(inner[0], item) for item in value)
        if len(inner) == len(value):
            return tuple(_as(one, item) for one, item in zip(inner, value, strict=True))
    elif origin is Mapping and isinstance(value, Mapping):
        return {_as(inner[0], name): _as(inner[1], item) for name, item in value.items()}
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is types.NoneType and value is None:
        return None
    elif hint in (str, int, bool) and type(value) is hint:
        return value
    raise ValueError(f"{_shown(value)} is not {getattr(hint, '__name__', hint)}")


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__
