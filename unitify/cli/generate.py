"""``unitify generate``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from unitify.cli.application import app
from unitify.cli.options import RuleFiles
from unitify.cli.terminal import reported


@app.command()
def generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A converted folder.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens.")] = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample tokens, instead of greedy decoding.")
    ] = False,
    rules: RuleFiles = [],  # noqa: B006  (typer copies it)
) -> None:
    """Continue a prompt with a converted language model, its casts and its cache."""
    from unitify.checkpoint.converted import HUGGINGFACE
    from unitify.checkpoint.folder import load
    from unitify.diagnostics import UnitifyWarning
    from unitify.serve.continued import continued

    with reported(), warnings.catch_warnings(record=True) as found:
        module = load(folder, rules=rules)
        warnings.simplefilter("always", UnitifyWarning)
        made = continued(module, folder / HUGGINGFACE, prompt, max_new_tokens, sample)
    for warning in found:
        if issubclass(warning.category, UnitifyWarning):
            typer.echo(f"warning: {warning.message}", err=True)
    if made.clipped is not None:
        share = f"{made.clipped:.2%} of keys and values saturated in the cache"
        typer.echo(share, err=True)
    typer.echo(made.text)
