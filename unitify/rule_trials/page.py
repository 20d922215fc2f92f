"""The rule table as one page of Markdown: ``docs/rules.md``."""

from __future__ import annotations

from pathlib import PurePosixPath

from unitify.rule_trials.listing import Row, rows
from unitify.rulebook.rule_table import load_rules

_HEAD = """\
# Rules

Written by `make docs` from `rules/*.toml`; `unitify rules` prints the same table. It has a row for
{count} operations. *law*: by which product of the operands' scales an operation leaves its result
(`out`) and takes each operand, when it runs on stored values; operands of a restoring operation
are brought back to true scale. *forward* and *backward*: how the RMS of the result and of the
operands' gradients is predicted. `mean`, `square` (mean of x²), `var` and `rms` are those of an
operand, or of `grad`, the gradient that arrives.
"""


def page() -> str:
    """The text of ``docs/rules.md``."""
    table = rows(load_rules().values())
    parts = [_HEAD.format(count=len(table))]
    for file in dict.fromkeys(row.file for row in table):
        parts.append(f"## {PurePosixPath(file).stem}\n")
        parts.append("| operation | law | forward | backward |\n|---|---|---|---|")
        parts += [_line(row) for row in table if row.file == file]
        parts.append("")
    return "\n".join(parts)


def _line(row: Row) -> str:
    law = f"{row.kind}: {row.law}" if row.law else row.kind
    cells = [f"`{row.operation}`", law, "; ".join(row.forward), "; ".join(row.backward)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
