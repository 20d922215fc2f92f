"""The output format "github": annotations of a workflow, and its summary.

Annotations go to stderr, so that stdout stays readable for machines. GitHub shows only the first
few of a step. So the worst come first, and the table of the summary holds all.
"""

from __future__ import annotations

from unitify.check.finding import SEVERITIES, Finding, by_line
from unitify.check.outcome import Outcome

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
#: The most annotations of each kind that GitHub shows for a step.
SHOWN = 10


def as_github(outcome: Outcome) -> str:
    """The worst findings of each severity as workflow commands, one for a line of source."""
    groups = by_line(outcome.findings)
    shown: list[list[Finding]] = []
    for severity in SEVERITIES:
        shown += [group for group in groups if group[0].severity == severity][:SHOWN]
    lines = [_annotation(group) for group in shown]
    left = len(outcome.findings) - sum(len(group) for group in shown)
    if left:
        lines.append(f"::notice title=unitify::{left} more findings are in the step's summary")
    return "\n".join(lines)


def _annotation(group: list[Finding]) -> str:
    first = group[0]
    properties = {"title": f"unitify ({first.code})"}
    if first.source.file:
        properties |= {"file": first.source.file, "line": str(max(first.source.line, 1))}
    written = ",".join(f"{name}={_escaped_property(value)}" for name, value in properties.items())
    more = f" ({len(group) - 1} more of the kind at this line)" if len(group) > 1 else ""
    message = _escaped(f"{first.message}{more}. {first.fix}")
    return f"::{_COMMANDS[first.severity]} {written}::{message}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
