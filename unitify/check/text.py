"""The output format "text": for people at a terminal.

Findings are grouped by the line that makes them. Findings with a cause elsewhere are only counted
there, unless all are asked for; every other format lists them in full.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from unitify.check.finding import Start, starts
from unitify.check.outcome import Outcome
from unitify.diagnostics import first_of

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
#: The most names of a group that are written out.
_SHOWN = 3


def as_text(outcome: Outcome, is_whole: bool = False) -> RenderableType:
    """All findings, worst first, and a last line that sums up.

    ``is_whole``: each finding by itself, also those that follow from another.
    """
    each = [Start((finding,), 0) for finding in outcome.findings] if is_whole else None
    lines = [line for start in each or starts(outcome.findings) for line in _block(start)]
    lines += [Text(f"note: {note}", style="dim") for note in outcome.notes]
    for code, name, direction in outcome.stale:
        tensor = f" ({direction})" if direction else ""
        lines.append(Text(f"stale in the baseline: {code} {name}{tensor}", style="dim"))
    return Group(*lines, summary(outcome))


def summary(outcome: Outcome) -> Text:
    """One line: how many findings, of how many tensors, by which criterion."""
    judged = f"{counted(len(outcome.cases), 'tensor')} of {outcome.target} {outcome.figures}"
    known = f", {len(outcome.known):,} known" if outcome.known else ""
    counts = ", ".join(f"{code} × {count}" for code, count in outcome.counts.items())
    if outcome.is_clean:
        notes = f" ({counted(len(outcome.findings), 'note')}: {counts})" if counts else ""
        return Text(f"clean{notes}: {judged}{known}; judged: {outcome.judged_by}", style="green")
    found = f"{counted(len(outcome.findings), 'finding')} ({counts}){known}"
    return Text(f"{found} in {judged}; judged: {outcome.judged_by}", style="bold")


def counted(number: int, noun: str) -> str:
    """A number of things, in words."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _block(start: Start) -> list[Text]:
    first = start.findings[0]
    head = Text()
    head.append(str(first.source) if first.source.file else "(no file)", style="bold")
    head.append(f": {first.code} ", style=_STYLES[first.severity])
    head.append(f"[{first.severity}] {first.message}")
    lines = [head]
    if first.source.text:
        lines.append(Text(f"    | {first.source.text}", style="cyan"))
    lines += [Text(f"    {line}", style="dim") for line in first.derivation[:4]]
    others = [f.name for f in start.findings[1:]]
    if others:
        lines.append(Text(f"    also {first_of(others, _SHOWN)}"))
    if start.followers:
        follow = "finding follows" if start.followers == 1 else "findings follow"
        lines.append(Text(f"    {start.followers} more {follow} from this"))
    lines.append(Text(f"    fix: {first.fix}"))
    return lines
