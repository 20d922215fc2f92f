"""What ``unitify.monitor`` wrote of a training, read back: a file of JSON lines → records."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unitify.diagnostics import ReadingsUnreadable, UnitifyError
from unitify.report.numerics import DIRECTIONS, DriftRecord


def read_drift(path: str | os.PathLike[str]) -> tuple[DriftRecord, ...]:
    """Every record of the file, in its order.

    Raises ``UnitifyError`` (U609) for a file that ``unitify.monitor`` did not write.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, problem) from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(path, f"line {number} is no record ({error})") from None
    if not records:
        raise _unreadable(path, "it holds no record")
    return tuple(records)


def _record(line: Mapping[str, Any]) -> DriftRecord:
    def readings(kind: str) -> dict[str, dict[str, float]]:
        return {
            direction: {
                value: float(reading[kind])
                for value, reading in line[direction].items()
                if reading.get(kind) is not None
            }
            for direction in DIRECTIONS
        }

    return DriftRecord(
        step=int(line["step"]),
        outside=float(line["outside"]),
        rms=readings("rms"),
        underflow=readings("underflow"),
        saturation=readings("saturation"),
    )


def _unreadable(path: str | os.PathLike[str], problem: str) -> UnitifyError:
    return UnitifyError(ReadingsUnreadable(path=os.fspath(path), problem=problem))
