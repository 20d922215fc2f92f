"""``unitify-baseline.json``: the known findings. CI then fails on new or worse ones alone.

The file is meant to be committed. It is sorted, holds no times, and has one line a finding, so that
branches merge. Code, name and direction identify a finding. A rounded log2 says how bad it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unitify.check.finding import Finding
from unitify.check.outcome import Outcome
from unitify.diagnostics import BaselineUnreadable, NotWritten, UnitifyError
from unitify.documents import first_line, read_json

VERSION = 1
#: A finding is worse where its level exceeds the rounded one of the baseline by more than this;
#: rounding alone moves a level by half.
WORSE = 1.0

#: Key of a finding → its rounded level; None where it has none.
Baseline = Mapping[tuple[str, str, str], int | None]


def read_baseline(path: Path) -> Baseline:
    """The known findings in ``path``; empty where there is no such file.

    Raises ``UnitifyError`` (U608) for a file that is no baseline.
    """
    if not path.exists():
        return {}
    try:
        document = read_json(path)
        if document["version"] != VERSION:
            raise ValueError(f"its version is not {VERSION}")
        return {_key(row): _level(row[3]) for row in document["findings"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = first_line(error)
        raise UnitifyError(BaselineUnreadable(path=str(path), problem=problem)) from None


def write_baseline(path: Path, outcome: Outcome) -> int:
    """Write every finding of ``outcome`` into the baseline. Returns how many there are.

    Raises ``UnitifyError`` (U606) where the file cannot be written.
    """
    rows = sorted(
        [*finding.key, None if finding.level is None else round(finding.level)]
        for finding in (*outcome.findings, *outcome.known)
    )
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    inner = f"\n{lines}\n " if rows else ""
    text = f'{{\n "version": {VERSION},\n "findings": [{inner}]\n}}\n'
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnitifyError(NotWritten(path=str(path), problem=problem)) from None
    return len(rows)


def against(outcome: Outcome, baseline: Baseline) -> Outcome:
    """``outcome`` with known findings separated from new and worse ones, and stale ones listed."""
    known = tuple(f for f in outcome.findings if _is_known(f, baseline))
    keys = {finding.key for finding in outcome.findings}
    return dataclasses.replace(
        outcome,
        findings=tuple(f for f in outcome.findings if not _is_known(f, baseline)),
        known=known,
        stale=tuple(sorted(key for key in baseline if key not in keys)),
    )


def _is_known(finding: Finding, baseline: Baseline) -> bool:
    if finding.key not in baseline:
        return False
    level = baseline[finding.key]
    return level is None or finding.level is None or finding.level - level <= WORSE


def _key(row: Any) -> tuple[str, str, str]:
    code, name, direction, _level = row
    if not all(isinstance(text, str) for text in (code, name, direction)):
        raise ValueError("a finding is not [code, name, direction, level]")
    return code, name, direction


def _level(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ValueError("a level is not a whole number")
    return value
