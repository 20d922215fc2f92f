"""A conversion that is killed leaves nothing that claims to be finished, or a whole folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_table import KILLS, losses

#: Kills of each of the two formats.
RUNS = 25


@pytest.mark.slow
def test_killed_conversions(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(program), str(tmp_path), str(RUNS)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    KILLS.update(json.loads(found.stdout.splitlines()[-1]))
    assert len(KILLS) == 2
    for name, left in KILLS.items():
        assert left["kills"] == left["right in the end"] == RUNS, (name, left)
        assert losses(left) == 0, (name, left)
        assert left["left beside it"] == 0, (name, left)
