"""The output format "markdown": a table, for pull requests and the summaries of workflows."""

from __future__ import annotations

from collections.abc import Iterable

from unitify.check.finding import Finding
from unitify.check.outcome import Outcome
from unitify.check.text import summary

_HEAD = ["code", "severity", "where", "what", "tensor", "begins at", "fix"]
#: Characters with a meaning in Markdown tables or HTML.
_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "\\`*_{}[]#|~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "}
)


def as_markdown(outcome: Outcome) -> str:
    """A heading, a summary line, and a row for each finding, worst first."""
    parts = [
        f"### unitify check {_escaped(outcome.target)}\n",
        f"{_escaped(str(summary(outcome)))}\n",
    ]
    if outcome.findings:
        parts.append(_table(_row(finding) for finding in outcome.findings))
    parts += [f"- {_escaped(note)}" for note in outcome.notes]
    parts += [f"- stale in the baseline: {_escaped(' '.join(key))}" for key in outcome.stale]
    return "\n".join(parts) + "\n"


def _table(rows: Iterable[list[str]]) -> str:
    lines = [_HEAD, ["---"] * len(_HEAD), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def _row(finding: Finding) -> list[str]:
    source = str(finding.source) if finding.source.file else ""
    cells = [
        finding.code,
        finding.severity,
        source,
        finding.diagnostic.message,
        f"{finding.name} ({finding.direction})" if finding.direction else finding.name,
        str(finding.cause_source) if finding.cause_source is not None else "",
        finding.fix,
    ]
    return [_escaped(cell) for cell in cells]


def _escaped(text: str) -> str:
    return text.translate(_SPECIAL)
