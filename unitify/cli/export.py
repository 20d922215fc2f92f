"""``unitify convert --format`` for runtimes, ``unitify export`` and ``unitify verify``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from unitify.cli.application import app
from unitify.cli.options import RuleFiles
from unitify.cli.terminal import bytes_bar, reported


def export_for_runtime(
    checkpoint: Path, output: Path, recipe: Any, format: str, *, model: str | None, **options: Any
) -> None:
    """Write a folder for a runtime, and print a summary."""
    from unitify.diagnostics import UnitifyError, UnknownOption
    from unitify.recipe.recipe import FP8
    from unitify.serve.contents import ONNX
    from unitify.serve.export import FORMATS, export
    from unitify.serve.onnx_folder import export_onnx

    with reported():
        if format not in (*FORMATS, ONNX):
            choices = ", ".join(["unitify", *FORMATS, ONNX])
            raise UnitifyError(UnknownOption(option="--format", value=format, choices=choices))
        if format == ONNX and options.pop("resume"):
            choices = "nothing: a file of ONNX is written in one piece"
            raise UnitifyError(UnknownOption(option="--resume", value="--resume", choices=choices))
        if format != ONNX and model is not None:
            choices = "nothing: a runtime builds the model of a Hugging Face folder"
            raise UnitifyError(UnknownOption(option="--model", value=model, choices=choices))
    casts = recipe or FP8
    with reported(), bytes_bar() as on_start:
        if format == ONNX:
            made = export_onnx(checkpoint, output, casts, model=model, on_start=on_start, **options)
        else:
            made = export(checkpoint, output, casts, format, on_start=on_start, **options)
    _print(made, output)


def _print(made: Any, output: Path) -> None:
    """Print what an export wrote."""
    from rich.table import Table

    from unitify.cli.console import open_console

    console = open_console()
    for note in made.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if made.layers:
        table = Table("layer", "scale of weight", "scale of input", "window", "margin, octaves")
        for row in made.layers:
            low, high = row.window
            window = f"{low:.2g} .. {high:.2g}"
            cells = f"{row.weight:g}", f"{row.input:g}", window, f"{row.margin:.1f}"
            table.add_row(row.layer, *cells)
        console.print(table)
    if made.caches:
        table = Table(
            "attention", "scale of keys", "scale of values", "RMS of keys", "RMS of values"
        )
        for kept in made.caches:
            numbers = kept.key, kept.value, kept.key_rms, kept.value_rms
            table.add_row(kept.attention, *(f"{number:.4g}" for number in numbers))
        console.print(table)
    layers = f"{len(made.layers)} layers, " if made.layers else ""
    console.print(f"layout {made.layout}: {layers}{made.size:,} bytes")
    if made.sqnr is not None:
        signal = f"{made.sqnr:.1f} dB of signal to noise" if made.sqnr < math.inf else "bitwise"
        console.print(f"outputs of its reader: {signal}")
    console.print(f"written to {output}", highlight=False, soft_wrap=True)


@app.command("export")
def export_folder(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A converted folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The new folder.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="compressed-tensors, fp8-dynamic, fp8-block or modelopt."
        ),
    ] = "compressed-tensors",
    rules: RuleFiles = [],  # noqa: B006  (typer copies it)
    verify: Annotated[
        bool, typer.Option(help="Compare the outputs of its reader with those of the module.")
    ] = True,
) -> None:
    """Write a converted language model for runtimes, with the codes and scales of its module."""
    from unitify.checkpoint.converted import HUGGINGFACE
    from unitify.checkpoint.folder import load
    from unitify.serve.trained import export

    with reported():
        module = load(folder, rules=rules)
        found = sorted((folder / HUGGINGFACE).glob("*"))
        made = export(module, output, format, companions=found, rules=rules, verify=verify)
    _print(made, output)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A converted folder.")],
    source: Annotated[
        Path | None,
        typer.Option(metavar="CKPT", help="Its source; every tensor is compared."),
    ] = None,
) -> None:
    """Check a converted folder against its hashes, and against its source."""
    from unitify.checkpoint.converted import PLAN, read
    from unitify.checkpoint.files import mapped_weights
    from unitify.checkpoint.original import check_source
    from unitify.serve.checked import check_folder

    with reported():
        if (folder / PLAN).is_file():
            found = read(folder)
            count = len(found.weights)
            if source is not None:
                check_source(found, mapped_weights(source))
        else:
            count = check_folder(folder, source)
    of = f", and equal to those of {source}" if source is not None else ""
    typer.echo(f"{folder}: {count} tensors, unchanged{of}")
