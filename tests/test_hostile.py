"""Damaged and made-up input is refused with a code; it runs nothing and writes nothing outside."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hostile import attempt
from hostile_kinds import KINDS, copy_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

#: Inputs of each kind that every run tries, and the long one.
FEW, MANY = 60, 1000


def fuzzed(kind: str, folder: Path, count: int) -> None:
    """Change an input ``count`` times, and read it."""
    own = KINDS[kind]
    (folder / "whole").mkdir()
    own.make(folder / "whole")
    own.read(folder / "whole", folder / "never")

    @seed(0)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(number=st.integers(0, 2**63))
    def one(number: int) -> None:
        changed = copy_of(folder / "whole", folder / "changed")
        own.change(changed, random.Random(number))
        out = folder / "out"
        copy_of(folder / "empty", out)
        attempt(kind, out, lambda: own.read(changed, out))

    (folder / "empty").mkdir()
    one()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_changed_inputs(kind: str, tmp_path: Path) -> None:
    fuzzed(kind, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_inputs(kind: str, tmp_path: Path) -> None:
    fuzzed(kind, tmp_path, MANY)
