"""``Finding``: one thing that is wrong with one tensor (or module) of a model. Plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unitify.capture.source import Frame
from unitify.diagnostics import Diagnostic

#: How bad: an "error" breaks in the chosen formats, a "warning" would if it were cast, a "note"
#: is left at true scale.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One diagnostic, where it holds, and how it came about.

    - ``name``: of what it is about, stable while other parts of the model change: a parameter's
      name, else module path / operation. ``value``: the graph's own name, as ``unitify explain``
      takes it; "" for a module
    - ``direction``: "forward" for a value, "backward" for its gradient, "" for neither
    - ``place``: file (from the repository's root) and line that made the tensor
    - ``level``: how bad, in octaves or log2 of a share; more is worse. None where it either is or
      is not
    - ``derivation``: how the figure was found, a line a step
    - ``cause``: the name of the finding in which the departure begins, "" where it begins here;
      ``cause_place``: that finding's place
    """

    diagnostic: Diagnostic
    name: str
    module: str
    place: Frame
    direction: str = ""
    value: str = ""
    severity: str = "warning"
    level: float | None = None
    derivation: tuple[str, ...] = ()
    cause: str = ""
    cause_place: Frame | None = field(default=None, compare=False)

    @property
    def code(self) -> str:
        """The stable code of what is wrong."""
        return self.diagnostic.code

    @property
    def key(self) -> tuple[str, str, str]:
        """What a baseline knows it by."""
        return self.code, self.name, self.direction

    @property
    def names(self) -> tuple[str, str, str]:
        """Everything that a pattern may call it by."""
        return self.name, self.module, self.value

    @property
    def message(self) -> str:
        """One line: what is wrong with what."""
        return f"{self.name}: {self.diagnostic.message}"

    @property
    def fix(self) -> str:
        """One line: what to do about it."""
        return self.diagnostic.remedy

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.code,
            "severity": self.severity,
            "name": self.name,
            "direction": self.direction,
            "module": self.module,
            "value": self.value,
            "file": self.place.file,
            "line": self.place.line,
            "source": self.place.text,
            "why": self.diagnostic.message,
            "fix": self.fix,
            "figures": _finite(self.diagnostic.as_json()["values"]),
            "level": None if self.level is None else round(self.level, 2),
            "derivation": list(self.derivation),
            "cause": self.cause,
            "cause_file": self.cause_place.file if self.cause_place else "",
            "cause_line": self.cause_place.line if self.cause_place else 0,
        }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they are null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def by_line(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings of one code and direction at one line, together; in the order of their first.

    A layer that a model has twelve times is one line, and one thing to mend.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        key = finding.code, finding.direction, finding.severity, finding.place, bool(finding.cause)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Ordered by severity, then causes before what follows from them, then by level and name."""
    return sorted(
        findings,
        key=lambda f: (
            SEVERITIES.index(f.severity),
            bool(f.cause),
            -(f.level if f.level is not None else 0.0),
            f.key,
        ),
    )
