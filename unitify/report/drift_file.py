"""Reads the file of ``unitify.monitor``: JSON lines → records."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unitify.diagnostics import ReadingsUnreadable, UnitifyError
from unitify.documents import JSON_BYTES, first_line, parse_json, read_text
from unitify.drift.monitor import Reading, Record
from unitify.report.numerics import DIRECTIONS


def read_drift(path: str | os.PathLike[str]) -> tuple[Record, ...]:
    """Every record of the file, in its order.

    Raises ``UnitifyError`` (U609) for a file that ``unitify.monitor`` did not write.
    """
    try:
        lines = read_text(Path(path), JSON_BYTES).splitlines()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, problem) from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_record(parse_json(line)))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            problem = f"line {number} is not a record ({first_line(error)})"
            raise _unreadable(path, problem) from None
    if not records:
        raise _unreadable(path, "it has no record")
    return tuple(records)


def _record(line: Mapping[str, Any]) -> Record:
    forward, backward = (
        {value: _reading(held) for value, held in line[direction].items()}
        for direction in DIRECTIONS
    )
    return Record(int(line["step"]), forward, backward)


def _reading(held: Mapping[str, Any]) -> Reading:
    known = {kind: float(number) for kind, number in held.items() if number is not None}
    return Reading(**{"rms": math.nan, **known})


def _unreadable(path: str | os.PathLike[str], problem: str) -> UnitifyError:
    return UnitifyError(ReadingsUnreadable(path=os.fspath(path), problem=problem))
