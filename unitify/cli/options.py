"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: The names of ``recipe.recipe.RECIPES``, which imports torch; help does not. A test compares them.
RECIPES = (
    "fp8", "fp8-fnuz", "fp8-mixed", "fp8-ptq", "fp8-auto", "fp16", "bf16", "mxfp8", "mxfp4",
    "nvfp4", "fp8-plain", "fp8-amax", "fp8-cscale", "fp16-plain", "fp16-loss-scaled",
)  # fmt: skip

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="The casts, by default those of ./pyproject.toml (check: else fp8): a .toml file, or "
        f"a name and changes (fp8,exclude=lm_head). Names: {', '.join(RECIPES)}.",
    ),
]
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
