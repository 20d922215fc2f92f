"""The rule table as pages of Markdown: ``docs/rules/``, one for each file of rules, and an index.

A formula that is too long for a cell is below the table, as the row has it in its file: there it
has shorthands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from unitify.rule_trials.listing import RuleText, rows
from unitify.rulebook.rule_table import load_rules, shipped_files

#: The most characters of a cell.
LONGEST = 300

_INDEX = """\
# Rules

Written by `make docs` from `rules/*.toml`; `unitify rules` prints the same table. It has a row for
each of {count} operations, one page for each file. The [glossary](../glossary.md) has the words.

- *law*: an operation runs on stored values. It leaves its result at the scale `out`, a product of
  its operands' scales, and multiplies each operand by the given factor. A *restoring* operation
  multiplies every operand by its scale, and so runs on true values.
- *forward* and *backward*: the prediction of the RMS of the result and of the operands' gradients.
  `mean`, `square` (mean of x²), `var` and `rms` are those of an operand, or of `grad`, the gradient
  of the result.

| family | operations |
|---|---|
"""


def pages() -> dict[str, str]:
    """File name → text of every page in ``docs/rules``."""
    table = rows(load_rules().values())
    families: dict[str, list[RuleText]] = {}
    for row in table:
        families.setdefault(PurePosixPath(row.file).stem, []).append(row)
    lines = (f"| [{name}]({name}.md) | {len(held)} |\n" for name, held in families.items())
    found = {"index.md": _INDEX.format(count=len(table)) + "".join(lines)}
    return found | {f"{name}.md": _page(name, held) for name, held in families.items()}


def write(folder: Path) -> None:
    """Write every page into ``folder``, and remove pages of families that no longer exist."""
    folder.mkdir(exist_ok=True)
    made = pages()
    for file in folder.glob("*.md"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, "utf-8")


def _page(family: str, held: list[RuleText]) -> str:
    text = shipped_files()[f"{family}.toml"]
    intro = re.match(r"(?:#.*\n)*", text)
    assert intro is not None
    written = dict(_written(text))
    long = [row.operation for row in held if any(len(c) > LONGEST for c in _cells(row))]
    lines = [
        f"# Rules: {family}\n",
        re.sub(r"^# ?", "", intro[0], flags=re.MULTILINE),
        "| operation | law | forward | backward |\n|---|---|---|---|",
        *(_line(row) for row in held),
    ]
    if long:
        lines.append("\n## Long formulas")
    for operation in long:
        lines.append(f"\n### `{operation}`\n\n```toml\n{written[operation]}\n```")
    return "\n".join(lines) + "\n"


def _written(text: str) -> Iterator[tuple[str, str]]:
    """Each row of a file: its operation, and its lines without comments."""
    for part in re.split(r"^(?=\[\")", text, flags=re.MULTILINE)[1:]:
        header, *lines = (line for line in part.splitlines() if line and line[0] != "#")
        yield header.strip('[]"'), "\n".join([header, *lines])


def _line(row: RuleText) -> str:
    anchor = re.sub(r"[^\w-]", "", row.operation).lower()
    cells = [c if len(c) <= LONGEST else f"[below](#{anchor})" for c in _cells(row)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(row: RuleText) -> tuple[str, str, str, str]:
    law = f"{row.kind}: {row.law}" if row.law else row.kind
    return f"`{row.operation}`", law, "; ".join(row.forward), "; ".join(row.backward)
