"""``Outcome``: everything that one check found, ready for every output format. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unitify.check.finding import Finding


@dataclass(frozen=True)
class Case:
    """One tensor that was judged: its stable name, module path and direction."""

    name: str
    module: str
    direction: str


@dataclass(frozen=True)
class Outcome:
    """One check of one target.

    - ``findings``: worst first; ``known``: those that the baseline has, no worse
    - ``stale``: keys of the baseline that nothing is found of any more
    - ``cases``: every tensor that was judged
    - ``notes``: what was not judged, and why
    - ``judged_by``: what tensors were judged by, in words; ``figures``: "predicted" or "measured"
    """

    target: str
    findings: tuple[Finding, ...]
    cases: tuple[Case, ...]
    judged_by: str
    figures: str
    known: tuple[Finding, ...] = ()
    stale: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Is nothing found that the baseline does not have?"""
        return not self.findings

    @property
    def counts(self) -> dict[str, int]:
        """Findings by code."""
        counts: dict[str, int] = {}
        for finding in self.findings:
            counts[finding.code] = counts.get(finding.code, 0) + 1
        return dict(sorted(counts.items()))

    def as_json(self) -> dict[str, Any]:
        """Plain data: the output format "json"."""
        return {
            "version": 1,
            "target": self.target,
            "judged_by": self.judged_by,
            "figures": self.figures,
            "judged": len(self.cases),
            "counts": self.counts,
            "findings": [finding.as_json() for finding in self.findings],
            "known": [finding.as_json() for finding in self.known],
            "stale": [
                {"code": code, "name": name, "direction": direction}
                for code, name, direction in self.stale
            ],
            "notes": list(self.notes),
            "seconds": {stage: round(time, 3) for stage, time in self.seconds.items()},
        }
