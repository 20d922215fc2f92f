"""Every trainer trains a module as it trains the original: bitwise, in all that it leaves."""

from __future__ import annotations

import pytest
from framework_table import note
from frameworks import compared
from slow import some_slow
from trainer_rows import ROWS

#: What takes long, or does as another by an option.
SLOW = (
    "transformers Trainer", "transformers Trainer, tied weights", "trl SFTTrainer",
    "transformers Trainer, bf16", "accelerate, bf16", "Lightning, exponential moving average",
    "Lightning, stochastic weight averaging",
)  # fmt: skip


@pytest.mark.parametrize("name", some_slow(ROWS, SLOW.__contains__))
def test_a_trainer(name: str) -> None:
    columns = compared(*ROWS[name]())
    note(name, columns)
    assert all(columns.values()), columns
