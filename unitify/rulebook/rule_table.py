"""The rule table: ``rules/*.toml`` and the user's own files as frozen rows, one an operation.

Takes TOML files; gives a ``RuleTable``: operation name → ``Rule``. Knows no graph and no scale.
An operation without a row has no law (its operands are restored to true scale) and sampled moments.

A user's row is checked against its operation when it is loaded. A test and ``unitify rules verify``
check the shipped rows, so that a start stays fast.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from unitify.diagnostics import (
    Diagnostic,
    OperationUnknown,
    RuleInvalid,
    UnitifyError,
    UnknownOption,
)
from unitify.documents import TOML_BYTES, first_line, parse_toml, read_text
from unitify.rulebook.row_forms import close_to
from unitify.rulebook.row_lines import failing_line, line_of, lines_of
from unitify.rulebook.row_names import unknown_names
from unitify.rulebook.row_reader import Problem, Row, read_row
from unitify.rulebook.row_use import idle
from unitify.rulebook.rule import Common, Law, Matmul, Moments, Rule, RuleTable
from unitify.rulebook.schema import arguments_of, find_operation, overloads_of

__all__ = [
    "Common",
    "Law",
    "Matmul",
    "Moments",
    "Rule",
    "RuleTable",
    "checked_rules",
    "load_rules",
]


def load_rules(extra: Iterable[str | Path | Mapping[str, Any]] = ()) -> RuleTable:
    """The shipped rules, then ``extra`` files or mappings.

    A second, different row for an operation needs ``replaces = true``.

    Raises ``UnitifyError`` with file and line of every problem: U001 where ``extra`` is not a list
    of files and mappings; U201 for an invalid row; U205 for an operation unknown to torch.
    """
    table = dict(_shipped())
    is_list = isinstance(extra, Iterable) and not isinstance(extra, str | Mapping)
    sources: list[Any] = list(extra) if is_list else [extra]
    wrong = [s for s in sources if not isinstance(s, str | os.PathLike | Mapping)]
    if wrong or not is_list:
        value, choices = repr((wrong or [extra])[0]), "a list of rule files and mappings"
        raise UnitifyError(UnknownOption(option="rules", value=value, choices=choices))
    for source in sources:
        rows = _registered(source) if isinstance(source, Mapping) else _opened(Path(source))
        table.update(_read(rows, is_checked=True, before=table))
    return table


def checked_rules() -> RuleTable:
    """The shipped rules, checked like a user's, with their lines in the files."""
    return _together(_read(rows, is_checked=True) for rows in _files())


@dataclass(frozen=True)
class _Rows:
    """Rows as TOML gives them. ``text``: that of their file; "" without one."""

    rows: Mapping[str, Any]
    file: str = ""
    text: str = ""


@cache
def _shipped() -> RuleTable:
    return _together(_read(rows, is_checked=False) for rows in _files())


def shipped_files() -> dict[str, str]:
    """The text of every shipped rule file, by name."""
    inside = resources.files("unitify") / "rules"
    # In a checkout they stand beside the package.
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "rules"
    found = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return {e.name: e.read_text("utf-8") for e in found if e.name.endswith(".toml")}


def _files() -> Iterable[_Rows]:
    for name, text in shipped_files().items():
        yield _Rows(tomllib.loads(text), f"rules/{name}", text)


def _together(tables: Iterable[RuleTable]) -> RuleTable:
    found: dict[str, Rule] = {}
    for table in tables:
        twice = table.keys() & found.keys()
        assert not twice, f"two rows for {sorted(twice)}"
        found.update(table)
    return found


def _registered(rows: Mapping[str, Any]) -> _Rows:
    return _Rows(rows)


def _opened(path: Path) -> _Rows:
    text = ""
    try:
        text = read_text(path, TOML_BYTES)
        return _Rows(parse_toml(text), str(path), text)
    except tomllib.TOMLDecodeError as error:
        where = f"{path}:{failing_line(error, text)}"
        problem = f"the file is not TOML: {error}"
        raise UnitifyError(RuleInvalid(where=where, operation=path.name, problem=problem)) from None
    except (OSError, ValueError) as error:
        raise UnitifyError(RuleInvalid(operation=str(path), problem=first_line(error))) from None


def _read(held: _Rows, *, is_checked: bool, before: RuleTable | None = None) -> RuleTable:
    """The rows of one source. ``before``: the rows of earlier sources."""
    table: dict[str, Rule] = {}
    wrong: list[tuple[str, Problem]] = []
    unknown: list[str] = []
    for operation, row in held.rows.items():
        filled, problems = _expanded(held.rows, row)
        read = None
        if not problems:
            read, problems = read_row(operation, filled)
        if read is not None:
            table[operation] = replace(read.rule, file=held.file)
            if is_checked and find_operation(operation) is None:
                unknown.append(operation)
            elif is_checked:
                problems = list(_checked(operation, read, (before or {}).get(operation)))
        wrong += [(operation, problem) for problem in problems]
    if not is_checked and not wrong:
        return table
    lines = lines_of(held.text)

    def where(path: tuple[str, ...]) -> str:
        return f"{held.file}:{line_of(lines, path)}" if held.file else "registered"

    found: list[Diagnostic] = [
        RuleInvalid(where=where((operation, *p.path)), operation=operation, problem=_said(p))
        for operation, p in wrong
    ]
    for operation in unknown:
        hint = close_to(operation, overloads_of(operation))
        found.append(OperationUnknown(where=where((operation,)), operation=operation, hint=hint))
    if found:
        raise UnitifyError(*found)
    return {name: replace(r, line=line_of(lines, (name,))) for name, r in table.items()}


def _checked(operation: str, read: Row, before: Rule | None) -> Iterable[Problem]:
    found = find_operation(operation)
    assert found is not None
    arguments = arguments_of(found)
    yield from unknown_names(read, arguments)
    yield from idle(read, arguments)
    if before is None and read.rule.replaces:
        yield Problem(("replaces",), "it has no effect: the operation has no other row")
    elif before not in (None, read.rule) and not read.rule.replaces:
        where = f" ({before.location})" if before is not None and before.location else ""
        yield Problem((), f"the operation has another row{where}; replaces = true replaces it")


def _said(problem: Problem) -> str:
    return ": ".join((*filter(None, [".".join(problem.path)]), problem.text))


def _expanded(rows: Mapping[str, Any], row: Any) -> tuple[Any, list[Problem]]:
    """The row with ``like`` filled in: the keys of another row of its file, then its own.

    An empty value removes a key of that row.
    """
    if not isinstance(row, Mapping) or "like" not in row:
        return row, []
    filled, seen = dict(row), []
    while "like" in filled:
        name = filled.pop("like")
        parent = rows.get(name) if isinstance(name, str) else None
        if not isinstance(parent, Mapping) or name in seen:
            hint = close_to(str(name), rows)
            return None, [Problem(("like",), f"{name!r} is not another row of this file{hint}")]
        seen.append(name)
        idle_keys = [k for k, v in filled.items() if v in ("", [], {}) and k not in parent]
        if idle_keys and "like" not in parent:
            return None, [Problem((k,), "there is no key to remove") for k in idle_keys]
        filled = {**parent, **filled}
    return {k: v for k, v in filled.items() if v not in ("", [], {})}, []
