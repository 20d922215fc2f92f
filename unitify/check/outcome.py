"""``Outcome``: everything that one check found, as plain values for every output format."""

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

    - ``findings``: worst first; ``known``: those of the baseline that are no worse
    - ``stale``: keys of the baseline without a finding
    - ``cases``: every judged tensor
    - ``notes``: what was not judged, and why
    - ``judged_by``: the criterion in words; ``figures``: "predicted" or "measured"
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
        """Is there no error and no warning that is not known? Notes do not count."""
        return all(finding.severity == "note" for finding in self.findings)

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
