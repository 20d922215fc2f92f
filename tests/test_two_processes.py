"""Distributed frameworks train a module as they train the original: bitwise, in two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed_rows import ROWS, SLOW
from framework_table import note
from two_processes import results

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def assert_same(folder: Path, names: list[str]) -> None:
    """One pair of processes runs them all: starting it takes as long as a dozen of them."""
    found = results(folder, names)
    for name, columns in found.items():
        note(name, columns if isinstance(columns, dict) else {})
    wrong = {n: c for n, c in found.items() if isinstance(c, str) or not all(c.values())}
    assert not wrong, "\n".join(f"{name}: {columns}" for name, columns in wrong.items())


def test_distributed(tmp_path: Path) -> None:
    assert_same(tmp_path, [name for name in ROWS if name not in SLOW])


def test_distributed_slowly(tmp_path: Path) -> None:
    assert_same(tmp_path, list(SLOW))
