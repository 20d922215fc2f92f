"""Tables of commands: as tables on a wide terminal, as records on a narrow one."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console, Group
from rich.table import Table
from typer.testing import CliRunner

from unitify.cli import app
from unitify.cli.console import WIDTH, records

CLI = Path(__file__).resolve().parent.parent / "unitify" / "cli"


def printed(columns: int, only: str) -> list[str]:
    """The lines of ``unitify rules`` on a terminal of so many columns."""
    found = CliRunner().invoke(app, ["rules", "--only", only], env={"COLUMNS": str(columns)})
    assert found.exit_code == 0, found.output
    return found.stdout.splitlines()


@pytest.mark.parametrize("columns", [40, 80, WIDTH - 1, WIDTH, 160])
def test_rules_fit_the_terminal(columns: int) -> None:
    lines = printed(columns, "aten.linear.default")
    assert max(map(len, lines)) <= columns
    assert any("│" in line for line in lines) == (columns >= WIDTH)


def test_a_record_has_every_cell_of_its_row() -> None:
    text = "\n".join(printed(80, "aten.linear.default"))
    assert text.startswith("1 rules\naten.linear.default\n")
    for header, cell in (
        ("law", "multilinear"), ("forward", "contraction of input, weight over fan_in"),
        ("backward", "input: sums of fan_out"),
    ):  # fmt: skip
        assert re.search(rf"^  {header} +{cell} *$", text, re.MULTILINE)


def test_records() -> None:
    table = Table("layer", "scale", "margin", title="two layers")
    table.add_row("up", "0.5", "1.0")
    table.add_row("down", "2", "")
    console = Console(file=io.StringIO(), width=20)
    console.print(Group(records(table)))
    expected = ["two layers", "up", "  scale   0.5", "  margin  1.0", "down", "  scale  2"]
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == expected


def test_every_command_has_this_console() -> None:
    """Errors and progress go to stderr, and hold no table."""
    for path in CLI.glob("*.py"):
        makes = re.findall(r"\bConsole\((.*)\)", path.read_text("utf-8"))
        assert path.name == "console.py" or all("stderr=True" in given for given in makes), path
