"""From what a user writes to a ``Recipe``: one parser for Python, command line and files.

A recipe is written as a name (``fp8``), as a name with changes (``fp8,exclude=lm_head+*.gate``), as
a table with ``base`` and the keys to change (in Python, in a TOML file, or as ``recipe`` under
``[tool.unitify]`` in ``pyproject.toml``), or as a ``Recipe``. Keys are the fields of ``Recipe``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unitify.diagnostics import RecipeInvalid, UnitifyError, UnknownRecipe
from unitify.documents import first_line, read_toml
from unitify.formats.table import FORMATS
from unitify.recipe.recipe import FP8, OPTIONAL, RECIPES, Recipe


def read_recipe(given: str | os.PathLike[str] | Mapping[str, Any] | Recipe | None) -> Recipe | None:
    """The recipe of a name, a name with changes, a table or a ``.toml`` file.

    None and a ``Recipe`` are returned as they are. In a file named ``pyproject.toml`` it is
    ``recipe`` under ``[tool.unitify]``; any other file is the table itself.

    Raises ``UnitifyError``: U401 for an unknown name, U402 for anything else that is no recipe.
    """
    if given is None or isinstance(given, Recipe):
        return given
    if isinstance(given, Mapping):
        return _from_table(given, "recipe")
    if not isinstance(given, str | os.PathLike):
        raise _invalid("recipe", f"{given!r} is no name, no table and no path")
    text = os.fspath(given)
    if text.endswith(".toml"):
        return _from_file(Path(text))
    base, *changes = (part.strip() for part in text.split(","))
    table: dict[str, Any] = {"base": base}
    for change in changes:
        key, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            raise _invalid(text, f"{change!r} is not of the form key=value")
        table[key] = _from_text(key, value)
    return _from_table(table, text, name=text if changes else base)


def configured_recipe(folder: Path) -> Recipe | None:
    """The recipe of ``pyproject.toml`` in ``folder``; None where it names none.

    Raises ``UnitifyError`` as ``read_recipe`` does.
    """
    path = folder / "pyproject.toml"
    return _from_file(path) if path.is_file() else None


def own_table(path: Path) -> Mapping[str, Any]:
    """``[tool.unitify]`` of a ``pyproject.toml``: ``recipe``, and ``check`` for ``unitify check``.

    Raises ``UnitifyError`` (U402) for a file that cannot be read and for any other key.
    """
    tools = _read(path).get("tool", {})
    own = tools.get("unitify", {}) if isinstance(tools, Mapping) else {}
    if not isinstance(own, Mapping) or own.keys() - {"recipe", "check"}:
        unknown = ", ".join(sorted(own)) if isinstance(own, Mapping) else own
        raise _invalid(str(path), f"[tool.unitify] holds {unknown}; its keys are recipe and check")
    return own


def _from_file(path: Path) -> Recipe | None:
    if path.name != "pyproject.toml":
        return _from_table(_read(path), str(path))
    return read_recipe(own_table(path).get("recipe"))


def _read(path: Path) -> Any:
    try:
        return read_toml(path)
    except (OSError, ValueError) as error:
        raise _invalid(str(path), f"it cannot be read ({first_line(error)})") from None


def _from_table(table: Mapping[str, Any], where: str, name: str | None = None) -> Recipe:
    changes = dict(table)
    base = changes.pop("base", None)
    if base is not None and not (isinstance(base, str) and base in RECIPES):
        raise UnitifyError(UnknownRecipe(name=str(base), known=", ".join(RECIPES)))
    fields = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(changes.keys() - fields)
    if unknown:
        known = ", ".join(["base", *(f.name for f in dataclasses.fields(Recipe))])
        raise UnitifyError(
            *(RecipeInvalid(where=where, problem=f"{key!r} is none of: {known}") for key in unknown)
        )
    made = {key: _from_plain(key, value, where) for key, value in changes.items()}
    start = RECIPES[base] if base is not None else FP8
    if name is not None:
        made.setdefault("name", name)
    return dataclasses.replace(start, **made)


def _from_plain(key: str, value: Any, where: str) -> Any:
    """A field from plain data: formats by name, lists as tuples."""
    if key in ("forward", "backward", *OPTIONAL) and isinstance(value, str):
        if value == "none" and key in OPTIONAL:
            return None
        if value not in FORMATS:
            raise _invalid(where, f"{key} is {value!r}, which is none of: {', '.join(FORMATS)}")
        return FORMATS[value]
    if key in ("include", "exclude"):
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if key in ("scale", "loss_scale", "min_sqnr") and type(value) is int and abs(value) < 2**64:
        return float(value)
    return value


def _from_text(key: str, text: str) -> Any:
    """A field from the text after its ``=``."""
    if key in ("include", "exclude"):
        return text.split("+")
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _invalid(where: str, problem: str) -> UnitifyError:
    return UnitifyError(RecipeInvalid(where=where, problem=problem))
