"""``unitify explain``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from unitify.cli.application import app
from unitify.cli.options import Factory, InputsFunction, RuleFiles
from unitify.cli.terminal import reported


@app.command()
def explain(
    subject: Annotated[
        str, typer.Argument(metavar="CODE|VALUE", help="A code such as U202, or a value's name.")
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A converted folder.")
    ] = None,
    model: Factory = None,
    inputs: InputsFunction = None,
    rules: RuleFiles = [],  # noqa: B006  (typer copies it)
) -> None:
    """Explain a diagnostic, or the derivation of a value's scale."""

    from unitify.cli.console import open_console
    from unitify.explain import explain_code

    with reported():
        if re.fullmatch(r"[Uu]\d+", subject):
            text = explain_code(subject.upper())
        else:
            text = _derivation(subject, folder, model, inputs, rules)
    open_console().print(text, markup=False, highlight=False, soft_wrap=True)


def _derivation(
    name: str, folder: Path | None, model: str | None, inputs: str | None, rules: list[Path]
) -> str:
    """The derivation from a converted folder, a factory, or a folder with a factory."""

    from unitify.capture.inputs import as_inputs
    from unitify.checkpoint.converted import read
    from unitify.checkpoint.drawn_calls import drawn_calls
    from unitify.checkpoint.original import true_model
    from unitify.checkpoint.targets import build_model, input_batches
    from unitify.explain import explain_value

    if folder is None and model is None:
        raise typer.BadParameter("a value needs a converted folder or --model")
    built = build_model(model) if model is not None else None
    given = input_batches(inputs)[0] if inputs is not None else ()
    if folder is None:
        assert built is not None
        args, kwargs = as_inputs(built, given)
        return explain_value(name, built, args, kwargs, rules=rules)
    converted = read(folder)
    built = true_model(converted, built)
    args, kwargs = drawn_calls(converted.calls, built, given, None)[0]
    return explain_value(name, built, args, kwargs, chosen=converted.plan, rules=rules)
