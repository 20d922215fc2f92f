"""Every architecture of the zoo, transformed, is the model itself. Run by ``make survey``.

Writes docs/results/architectures.md where all of them ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zoo
from survey import Row, surveyed, table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "architectures.md"

#: What no comparison can be made of, and the code that says so: it draws seeds of its own accord,
#: so that no two calls of the model itself are the same.
REFUSED = {"reformer": "U110"}

pytestmark = pytest.mark.survey


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    found: list[Row] = []
    yield found
    if {row.name for row in found} == set(zoo.ARCHITECTURES):
        PAGE.write_text(table(found), "utf-8")


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_is_the_model(name: str, rows: list[Row]) -> None:
    row = surveyed(name)
    rows.append(row)
    if name in REFUSED:
        assert row.form == REFUSED[name], row.refused
    else:
        assert row.is_accepted, row.refused or row.found
