"""Every trainer trains a module as it trains the original: bitwise, in all that it leaves."""

from __future__ import annotations

import pytest
from framework_table import note
from frameworks import compared
from trainer_rows import ROWS

#: Others do the same by another option.
SLOW = (
    "transformers Trainer, bf16", "accelerate, bf16", "Lightning, exponential moving average",
    "Lightning, stochastic weight averaging",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.frameworks] if n in SLOW else []) for n in ROWS],
)
def test_a_trainer(name: str) -> None:
    columns = compared(*ROWS[name]())
    note(name, columns)
    assert all(columns.values()), columns
