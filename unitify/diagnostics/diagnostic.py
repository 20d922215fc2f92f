"""``Diagnostic``, the form of every finding, and the exception and warning that carry it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Diagnostic:
    """One finding: a stable code and the values that fill its text."""

    code: ClassVar[str] = ""
    why: ClassVar[str] = ""
    fix: ClassVar[str] = ""
    #: Does ``transform`` warn of it, because something of the model, or an option, is not kept?
    is_loss: ClassVar[bool] = False

    #: Module path, value name or file, and the user's source line where known.
    where: str = field(default="", kw_only=True)
    #: The user's call stack as (file, line), outermost first, where one is known.
    frames: tuple[tuple[str, int], ...] = field(default=(), kw_only=True, repr=False, compare=False)

    @property
    def message(self) -> str:
        """One line: what is wrong, with this finding's values."""
        return _one_line(self.why.format(**self.values()))

    @property
    def remedy(self) -> str:
        """One line: what to do about it."""
        return _one_line(self.fix.format(**self.values()))

    def values(self) -> dict[str, Any]:
        """The fields that vary, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def as_json(self) -> dict[str, Any]:
        """The finding as plain data, for reports."""
        return {
            "code": self.code,
            "where": self.where,
            "why": self.message,
            "fix": self.remedy,
            "values": {k: v for k, v in self.values().items() if k not in ("where", "frames")},
        }

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        return f"{self.code}{place} {self.message.rstrip('.')}. {self.remedy}"


def _one_line(text: str) -> str:
    """``text`` without line ends, and with escapes for what no terminal should get from a file."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(map(_shown, line))


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def error_line(error: BaseException) -> str:
    """The first line of an error's text; without one, its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class UnitifyError(Exception):
    """A failure that the user can mend; carries one or more diagnostics."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("\n".join(str(d) for d in diagnostics))
        self.diagnostics = diagnostics

    @property
    def code(self) -> str:
        """The code of the first diagnostic."""
        return self.diagnostics[0].code


class UnitifyWarning(UserWarning):
    """Something that was left alone, or is not what it seems."""


def warn_of_losses(diagnostics: Iterable[Diagnostic]) -> None:
    """One ``UnitifyWarning`` for each code under which something is not kept."""
    found: dict[str, list[Diagnostic]] = {}
    for diagnostic in diagnostics:
        if diagnostic.is_loss:
            found.setdefault(diagnostic.code, []).append(diagnostic)
    for first, *others in found.values():
        more = f" ({len(others)} more of the kind in .diagnostics)" if others else ""
        warnings.warn(UnitifyWarning(f"{first}{more}"), stacklevel=3)
