"""``unitify rules``: the rule table, listed, verified and extended."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unitify.cli.application import app
from unitify.cli.options import Imports, RuleFiles
from unitify.cli.terminal import reported

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from unitify.rule_trials.listing import RuleText
    from unitify.rule_trials.verify import Verdict

rules_app = typer.Typer(
    help="List the rule table, verify rows of it or of your own file, or begin a new row.",
    invoke_without_command=True,
)
app.add_typer(rules_app, name="rules")

Pattern = Annotated[
    str, typer.Option("--only", metavar="PATTERN", help="Operations, such as 'aten.conv*'.")
]


@rules_app.callback(invoke_without_command=True)
def rules(
    context: typer.Context,
    only: Pattern = "*",
    files: RuleFiles = [],  # noqa: B006  (typer copies it)
    imports: Imports = [],  # noqa: B006
) -> None:
    """List the rule table: each operation's law and moments."""
    from unitify.checkpoint.targets import import_libraries
    from unitify.cli.console import open_console
    from unitify.rule_trials.listing import rows
    from unitify.rulebook.rule_table import load_rules

    if context.invoked_subcommand is not None:
        return
    with reported():
        import_libraries(imports)
        found = [r for r in rows(load_rules(files).values()) if fnmatchcase(r.operation, only)]
    open_console().print(_table(found), soft_wrap=False)


@rules_app.command("verify")
def verify_rules(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Your own rule file; without one, the shipped rows."),
    ] = None,
    only: Pattern = "*",
    imports: Imports = [],  # noqa: B006
) -> None:
    """Test rows on samples: laws bitwise, moments within four standard errors.

    Exit status: 0 if all hold, 1 if one does not, 2 for an invalid file.
    """
    from unitify.checkpoint.targets import import_libraries
    from unitify.cli.console import open_console
    from unitify.rule_trials.verify import verify
    from unitify.rulebook.rule_table import checked_rules, load_rules

    console = open_console()
    with reported():
        import_libraries(imports)
        table = checked_rules()
        if file is not None:
            own = load_rules([file])
            table = {name: rule for name, rule in own.items() if rule.file == str(file)}
        verdicts = []
        for verdict in verify(table, [only]):
            verdicts.append(verdict)
            console.print(_line(verdict), highlight=False, soft_wrap=True)
    failed = sum(not verdict.holds for verdict in verdicts)
    print(f"{len(verdicts) - failed} of {len(verdicts)} rows hold")
    raise typer.Exit(1 if failed else 0)


@rules_app.command("new")
def new_rule(
    operation: Annotated[str, typer.Argument(metavar="OPERATION", help="aten.cumsum.default")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The file; else the terminal."),
    ] = None,
    imports: Imports = [],  # noqa: B006
) -> None:
    """Write a first row for an operation, which already verifies."""
    from unitify.checkpoint.new_folder import check_absent
    from unitify.checkpoint.targets import import_libraries
    from unitify.rule_trials.skeleton import skeleton

    with reported():
        import_libraries(imports)
        text = skeleton(operation)
        if output is not None:
            check_absent(output)
            output.write_text(text, "utf-8")
            return
    print(text, end="")


def _table(found: list[RuleText]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(found)} rules", title_justify="left")
    for name in ("operation", "law", "forward", "backward"):
        table.add_column(name, overflow="fold")
    for row in found:
        law = f"{row.kind}\n{row.law}" if row.law else row.kind
        cells = (row.operation, law, "\n".join(row.forward), "\n".join(row.backward))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _line(verdict: Verdict) -> Text:
    from rich.text import Text

    where = f"{verdict.location}: " if verdict.location and not verdict.holds else ""
    line = Text(f"{where}{verdict.operation}: ")
    if verdict.holds:
        tried = f"law bitwise in {verdict.law} trials, {verdict.moments} moments"
        line.append("holds", style="green").append(f" ({tried})" if verdict.law else "")
    else:
        line.append("does not hold", style="bold red").append(f": {'; '.join(verdict.problems)}")
    return line.append(f" [{'; '.join(verdict.notes)}]") if verdict.notes else line
