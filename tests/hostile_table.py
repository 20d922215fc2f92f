"""docs/results/hostile.md, from what a run of ``make hostile`` tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hostile import COUNTS, Counts

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "hostile.md"

#: What kills left, by format.
KILLS: dict[str, Mapping[str, Any]] = {}

_HEAD = """# Hostile input

Written by `make hostile`. Whole files of each kind are changed at random: cut, with bits flipped,
with bytes replaced, doubled or left out, and with other values, keys and depths in their
documents; hashes in a converted folder are made to match. "Made up" are inputs with one idea each,
on the command line: absurd shapes and sizes, paths and links that lead out of a folder, archives
and pickles that reserve memory or run code, configs that ask for code or for endless models.

Right is a refusal with a code, or a result. An audit hook of Python notes every write, every
started program and every connection.

"""
_KILLS = """
## Killed conversions

A small Llama in several shards is converted, and `kill -9` ends the process: half of the times at
a random time, half in front of a change of the file system (each of the last six, and others at
random). Then the same call runs again, for a runtime with `--resume`. A loss is a folder under its
final name that `unitify verify` refuses, a second call that does not complete, or a result that
differs. "Partial folder" counts what was begun and had not its name yet.

"""


def table(counts: Counts = COUNTS) -> str:
    """The page."""
    rows = [
        (kind, tried, counts.refused[kind], tried - counts.refused[kind])
        for kind, tried in sorted(counts.tried.items())
    ]
    total = [sum(row[column] for row in rows) for column in (1, 2, 3)]
    lines = _rows(("input", "tried", "refused", "read"), [*rows, ("all", *total)])
    found = _rows(
        ("what may not be", "found"),
        [
            ("other exceptions, hangs", len(counts.crashes)),
            ("writes outside the output folder", len(counts.outside)),
            ("payloads run, programs started, connections", len(counts.executed)),
        ],
    )
    most = (
        f"\nThe longest took {counts.most_seconds:.1f} s of one CPU core, "
        f"and the largest {counts.most_memory / 1024:.0f} MB of memory.\n"
    )
    return f"{_HEAD}{lines}\n{found}{most}{_KILLS}{_rows_of_kills()}"


def losses(found: Mapping[str, Any]) -> int:
    """The losses in what kills left."""
    names = ("incomplete under its name", "not completed by the same call")
    return sum(found.get(name, 0) for name in names) + found["kills"] - found["right in the end"]


def _rows_of_kills() -> str:
    names = ("kills", "unfinished", "partial folder", "complete", "right in the end")
    rows = [(f, *(found.get(n, 0) for n in names), losses(found)) for f, found in KILLS.items()]
    return _rows(("format", *names, "losses"), rows)


def _rows(titles: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    titles = list(titles)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
