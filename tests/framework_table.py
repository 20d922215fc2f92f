"""docs/results/frameworks.md, from the rows that a run of ``make frameworks`` compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from frameworks import COLUMNS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results" / "frameworks.md"

#: What was compared in this process, by framework: which columns are the original's.
NOTED: dict[str, Mapping[str, bool]] = {}

_TITLES = {
    "losses": "loss curve",
    "norms": "gradient norm",
    "saved": "saved file in the plain model",
    "resumed": "resumed",
}
_HEAD = """# Frameworks

Written by `make frameworks`. Each row trains a model and its transformed module under one framework
and compares bit by bit: the loss of every step, the norm of the gradients before clipping, the
state dict of a plain model that was given the saved file, and the losses after resuming from it.
Distributed rows run in two processes, on gloo. A dash: the row has nothing of the kind.

No row has a recipe, save those of FP8 codes: "PEFT on FP8 codes" compares `to_frozen()`, and
"FSDP2, gathered as FP8 codes" a module after `gather_codes_`, with the module without it. Where a
framework reaches into submodules (per block, tensor and sequence parallel, trl, PEFT after
transform, `update_bn`), the model's own code runs, with a warning (U115).

"""


def note(name: str, columns: Mapping[str, bool]) -> None:
    """Keep what was compared under a framework, if it is of a column."""
    if any(own.startswith(column) for own in columns for column in COLUMNS):
        NOTED[name] = columns


def table() -> str:
    """The page."""
    titles = ["framework", *_TITLES.values()]
    lines = [titles, ["---"] * len(titles)]
    for name in sorted(NOTED, key=str.casefold):
        cells = (_cell(NOTED[name], column) for column in COLUMNS)
        lines.append([name, *cells])
    return _HEAD + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(columns: Mapping[str, bool], column: str) -> str:
    own = [same for name, same in columns.items() if name.startswith(column)]
    if not own:
        return "–"
    return "bitwise" if all(own) else "**differs**"
