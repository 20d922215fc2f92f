"""``Finding``: one thing that is wrong with one tensor or module of a model, as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unitify.capture.source import Frame
from unitify.diagnostics import Diagnostic

#: An "error" breaks in the chosen formats. A "warning" would break if it were cast. A "note" breaks
#: nothing.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One diagnostic, its tensor and line, and its derivation.

    - ``name``: the tensor's stable name: a parameter's own, else module path / operation. Changes
      elsewhere in the model leave it as it is. ``value``: its name in the graph, which ``unitify
      explain`` takes; "" for a module
    - ``direction``: "forward" for a value, "backward" for its gradient, "" for neither
    - ``source``: the file (from the repository's root) and line that made the tensor
    - ``level``: how bad, in octaves or log2 of a share; more is worse. None for a yes or no
    - ``derivation``: how the RMS was found, a line a step
    - ``cause``: the name of the finding where the departure begins, "" where it begins here;
      ``cause_source``: the line of that finding
    """

    diagnostic: Diagnostic
    name: str
    module: str
    source: Frame
    direction: str = ""
    value: str = ""
    severity: str = "warning"
    level: float | None = None
    derivation: tuple[str, ...] = ()
    cause: str = ""
    cause_source: Frame | None = field(default=None, compare=False)

    @property
    def code(self) -> str:
        """The stable code of the diagnostic."""
        return self.diagnostic.code

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the finding in a baseline."""
        return self.code, self.name, self.direction

    @property
    def names(self) -> tuple[str, str, str]:
        """The names by which a pattern may match the finding."""
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
            "file": self.source.file,
            "line": self.source.line,
            "source": self.source.text,
            "why": self.diagnostic.message,
            "fix": self.fix,
            "figures": _finite(self.diagnostic.as_json()["values"]),
            "level": None if self.level is None else round(self.level, 2),
            "derivation": list(self.derivation),
            "cause": self.cause,
            "cause_file": self.cause_source.file if self.cause_source else "",
            "cause_line": self.cause_source.line if self.cause_source else 0,
        }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` for JSON, which has no NaN and no infinity: they are null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def by_line(findings: Iterable[Finding]) -> list[list[Finding]]:
    """Findings grouped by code, direction and line, in the order of the first of each group.

    A layer that a model has twelve times is one line, and one thing to fix.
    """
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        key = finding.code, finding.direction, finding.severity, finding.source, bool(finding.cause)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


@dataclass(frozen=True)
class Start:
    """Findings that begin at one line, and how many others follow from them."""

    findings: tuple[Finding, ...]
    followers: int


def starts(findings: Iterable[Finding]) -> list[Start]:
    """``findings`` by the line where they begin; a finding whose cause is among them is counted."""
    findings = list(findings)
    begun = {(finding.name, finding.source) for finding in findings if not finding.cause}
    followers: dict[tuple[str, Frame | None], int] = {}
    shown: list[Finding] = []
    for finding in findings:
        start = finding.cause, finding.cause_source
        if start in begun:
            followers[start] = followers.get(start, 0) + 1
        else:
            shown.append(finding)
    return [
        Start(tuple(group), sum(followers.pop((f.name, f.source), 0) for f in group))
        for group in by_line(shown)
    ]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sorted by severity; causes before their consequences; then by level and name."""
    return sorted(
        findings,
        key=lambda f: (
            SEVERITIES.index(f.severity),
            bool(f.cause),
            -(f.level if f.level is not None else 0.0),
            f.key,
        ),
    )
