"""``Settings``: what is judged, and the limits, from ``[tool.unitify.check]``.

The file and the command line share one table of keys. An unknown key or an invalid value is an
error (U011), because a misspelled limit would silently not hold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from unitify.check.judged import Scope
from unitify.diagnostics import SettingsInvalid, UnitifyError, UnknownCode, all_diagnostics
from unitify.formats.table import FORMATS
from unitify.recipe.reader import own_table

#: The choices of ``values``.
VALUES = ("stored", "cast")
#: Keys that ``per_name`` may set for the tensors of a pattern.
LIMITS = ("noise", "flushed", "saturated", "drift", "band")
#: Matches a code or the start of one; also a misspelled one, which is refused as such.
_CODE = re.compile(r"U|U\d\w{0,3}")


@dataclass(frozen=True)
class Limits:
    """The limits beyond which a tensor is a finding. docs/results/check.md counts false alarms.

    - ``noise``: decibels of signal to noise that the range of a format may cost (3 is half the
      power)
    - ``flushed``, ``saturated``: shares of non-zero elements that may become zero, or be clipped
    - ``drift``: octaves that an RMS may be away from its scale in a plan
    - ``band``: the least and the greatest RMS, with ``format = "unit"``
    """

    noise: float = 3.0
    flushed: float = 0.5
    saturated: float = 0.001
    drift: float = 2.0
    band: tuple[float, float] = (0.5, 2.0)


@dataclass(frozen=True)
class Settings:
    """What ``unitify check`` judges, and its limits.

    - ``format``: "e4m3", or "e4m3/e5m2" for values and gradients, judges every stored tensor as if
      it were cast; "unit" judges by ``band``; "" judges by the formats of the recipe
    - ``values``: "stored" judges all stored tensors, those with casts by their casts; "cast" judges
      only the latter
    - ``select``, ``ignore``: starts of codes (``U80``), and patterns (``*``, ``?``, ``[…]``) of
      names, module paths or values. A finding is reported if a code and a pattern select it, and
      none ignores it. Without codes or patterns all are selected
    - ``per_name``: pattern → limits, and codes to ``ignore``, of the tensors that it matches
    - ``baseline``: the file of known findings
    """

    format: str = ""
    values: str = "stored"
    limits: Limits = Limits()
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    per_name: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    baseline: str = "unitify-baseline.json"

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise UnitifyError(*(SettingsInvalid(problem=p) for p in problems))
        for code in (*_codes(self.select), *_codes(self.ignore)):
            _check_selector(code)

    @property
    def scope(self) -> Scope:
        """The tensors to judge, and their formats."""
        if self.format == "unit":
            return Scope(self.values, is_unit=True)
        if not self.format:
            return Scope(self.values)
        forward, _, backward = self.format.partition("/")
        return Scope(self.values, (FORMATS[forward], FORMATS[backward or forward]))

    def limits_for(self, names: Iterable[str]) -> Limits:
        """The limits of a tensor with these names; the last pattern that matches wins."""
        names = list(names)
        changes: dict[str, Any] = {}
        for pattern, table in self.per_name.items():
            if _matches((pattern,), names):
                changes |= {key: table[key] for key in LIMITS if key in table}
        return dataclasses.replace(self.limits, **changes) if changes else self.limits

    def reports(self, code: str, names: Iterable[str]) -> bool:
        """Is a finding with this code and these names reported?"""
        names = list(names)
        local = [t.get("ignore", ()) for p, t in self.per_name.items() if _matches((p,), names)]
        ignored = [*_codes(self.ignore), *(code for codes in local for code in codes)]
        return (
            code.startswith(_codes(self.select) or ("U",))
            and not code.startswith(tuple(ignored))
            and self.judges(names)
            and not _matches(_patterns(self.ignore), names)
        )

    def judges(self, names: Iterable[str]) -> bool:
        """Do the patterns select a tensor with these names?"""
        patterns = _patterns(self.select)
        return not patterns or _matches(patterns, list(names))

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The patterns, of any key, that match none of ``names``."""
        names = list(names)
        patterns = (*_patterns(self.select), *_patterns(self.ignore), *self.per_name)
        return [pattern for pattern in patterns if not _matches((pattern,), names)]


def _matches(patterns: Iterable[str], names: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _codes(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(item for item in items if _CODE.fullmatch(item))


def _patterns(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(item for item in items if not _CODE.fullmatch(item))


def read_settings(folder: Path, **given: Any) -> Settings:
    """The settings of ``pyproject.toml`` in ``folder``, overridden by ``given``.

    ``given``: keys of the table; None counts as not given. Raises ``UnitifyError``: U011, or U006
    for a code that does not exist.
    """
    path = folder / "pyproject.toml"
    table = own_table(path).get("check", {}) if path.is_file() else {}
    if not isinstance(table, Mapping):
        raise _invalid(f"[tool.unitify.check] is {table!r}, not a table")
    changes = {key: value for key, value in given.items() if value is not None}
    return settings_from({**table, **changes})


def settings_from(table: Mapping[str, Any]) -> Settings:
    """Settings from plain data, in which limits stand among the other keys.

    Raises ``UnitifyError`` (U011, U006).
    """
    own = {f.name for f in dataclasses.fields(Settings)} - {"limits"}
    known = [*sorted(own), *LIMITS]
    unknown = sorted(table.keys() - set(known))
    if unknown:
        raise _invalid(*(f"{key!r} is none of: {', '.join(known)}" for key in unknown))
    limits = {key: _plain(table[key]) for key in LIMITS if key in table}
    held = {key: _plain(value) for key, value in table.items() if key in own}
    return Settings(**held, limits=dataclasses.replace(Limits(), **limits))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _problems(settings: Settings) -> Iterable[str]:
    for part in settings.format.split("/") if isinstance(settings.format, str) else ["?"]:
        if settings.format not in ("", "unit") and part not in FORMATS:
            yield f"format is {settings.format!r}, which is not unit or of: {', '.join(FORMATS)}"
    if settings.values not in VALUES:
        yield f"values is {settings.values!r}, which is none of: {', '.join(VALUES)}"
    for name in ("select", "ignore"):
        yield from _not_texts(name, getattr(settings, name))
    yield from _wrong_limits("", vars(settings.limits))
    for pattern, table in settings.per_name.items():
        if not isinstance(table, Mapping):
            yield f"per_name {pattern!r} is {table!r}, not a table"
            continue
        for key in table.keys() - {*LIMITS, "ignore"}:
            yield f"{key!r} of per_name {pattern!r} is none of: ignore, {', '.join(LIMITS)}"
        yield from _not_texts(f"ignore of per_name {pattern!r}", table.get("ignore", ()))
        yield from _wrong_limits(f" of per_name {pattern!r}", table)


def _not_texts(name: str, value: Any) -> Iterable[str]:
    if not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
        yield f"{name} is {value!r}, not a list of texts"


def _wrong_limits(where: str, table: Mapping[str, Any]) -> Iterable[str]:
    for key in LIMITS:
        value = table.get(key, 0.0)
        numbers = value if key == "band" and isinstance(value, tuple) else (value,)
        if not all(_is_number(n) and n >= 0 for n in numbers):
            yield f"{key}{where} is {value!r}, not a number of zero or more"
        elif key == "band" and key in table and not (len(numbers) == 2 and numbers[0] < numbers[1]):
            yield f"band{where} is {value!r}, not a smallest and a largest RMS"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_selector(selector: str) -> None:
    """Raises ``UnitifyError`` (U006) unless a code starts so."""
    known = all_diagnostics()
    if not any(code.startswith(selector) for code in known) or not selector:
        raise UnitifyError(UnknownCode(asked=selector, known=", ".join(known)))


def _invalid(*problems: str) -> UnitifyError:
    return UnitifyError(*(SettingsInvalid(problem=p) for p in problems))
