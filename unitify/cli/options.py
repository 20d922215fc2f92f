"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Factory = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="pkg.module:factory", help="The function that builds the model."
    ),
]
InputsFunction = Annotated[
    str | None,
    typer.Option(
        "--inputs",
        metavar="pkg.module:function",
        help="A function that returns example inputs: a tensor, a tuple, a dict, or a list of "
        "tuples or dicts (batches).",
    ),
]
Scales = Annotated[
    str,
    typer.Option(
        metavar="auto|measured|analysis",
        help="Measured in a run (auto: if weights hold data), or predicted.",
    ),
]
Imports = Annotated[
    list[str],
    typer.Option(
        "--import",
        metavar="pkg.module",
        help="A module that registers operations of your own; repeatable.",
    ),
]
RuleFiles = Annotated[
    list[Path], typer.Option("--rules", metavar="FILE", help="A rule file of your own; repeatable.")
]
