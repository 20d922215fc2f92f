"""``unitify convert``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from unitify.cli.application import app
from unitify.cli.options import Factory, InputsFunction, RecipeName, RuleFiles, Scales
from unitify.cli.terminal import progress_bar, reported


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="A Hugging Face folder; or, with --model, a .safetensors or .pt file, a folder of "
            "shards, or one of torch.distributed.checkpoint.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The new folder.")],
    model: Factory = None,
    inputs: InputsFunction = None,
    recipe: RecipeName = None,
    scales: Scales = "auto",
    rules: RuleFiles = [],  # noqa: B006  (typer copies it)
    allow_missing: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Names that the checkpoint may lack, such as 'head.*'; they keep the model's "
            "initial values; repeatable.",
        ),
    ] = [],  # noqa: B006
    allow_unexpected: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Names of the checkpoint that the model may lack; repeatable.",
        ),
    ] = [],  # noqa: B006
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="unitify, which is complete; or for runtimes: compressed-tensors (the recipe's "
            "layout: fp8, mxfp8, mxfp4, nvfp4), fp8-dynamic, fp8-block, modelopt, onnx.",
        ),
    ] = "unitify",
    to: Annotated[
        str | None,
        typer.Option(
            metavar="original", help="Write the original checkpoint of the converted folder CKPT."
        ),
    ] = None,
    unsafe_load: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Run the code in the pickle CKPT, which you trust; plan.json holds the reason.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue after an interrupted run of the same call."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            help="Compare the result with the original: bitwise before casts; for a runtime, by "
            "the outputs of its reader."
        ),
    ] = True,
    recording_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Longer recordings are repeated with fewer free sizes (default: 120)."
        ),
    ] = None,
) -> None:
    """Convert a checkpoint: the same function, with every tensor stored near unit RMS."""

    from unitify.capture.sizes import RECORDING_SECONDS
    from unitify.checkpoint.filling import Allowed
    from unitify.cli.console import open_console
    from unitify.convert import convert as convert_checkpoint
    from unitify.convert import stages
    from unitify.diagnostics import UnitifyError, UnknownOption
    from unitify.recipe.reader import configured_recipe, read_recipe
    from unitify.report.table import report_table

    with reported():
        casts = read_recipe(recipe) if recipe is not None else configured_recipe(Path())
        if unsafe_load is not None and (to is not None or format != "unitify"):
            choices = "nothing: it goes with --format unitify alone"
            raise UnitifyError(
                UnknownOption(option="--unsafe-load", value=unsafe_load, choices=choices)
            )
    if to is not None:
        from unitify.checkpoint.converted import read
        from unitify.checkpoint.original import write_original

        with reported():
            if to != "original":
                raise UnitifyError(UnknownOption(option="--to", value=to, choices="original"))
            write_original(read(checkpoint), output)
        print(f"written to {output}")
        return
    if format != "unitify":
        from unitify.cli.export import export_for_runtime

        export_for_runtime(
            checkpoint, output, casts, format,
            model=model, inputs=inputs, scales=scales, rules=rules, verify=verify, resume=resume,
        )  # fmt: skip
        return
    with reported(), progress_bar(stages(verify, casts)) as advance:
        report = convert_checkpoint(
            checkpoint,
            output,
            model=model,
            inputs=inputs,
            recipe=casts,
            scales=scales,
            rules=rules,
            verify=verify,
            recording_seconds=RECORDING_SECONDS if recording_seconds is None else recording_seconds,
            allowed=Allowed(tuple(allow_missing), tuple(allow_unexpected)),
            unsafe_load=unsafe_load,
            on_stage=advance,
        )
    console = open_console()
    console.print(report_table(report))
    written = f"written to {output}: {_contents(output)}"
    console.print(written, highlight=False, soft_wrap=True)


def _contents(folder: Path) -> str:
    """The weights in a folder that was just written, by type, with their sizes."""
    from unitify.checkpoint.files import mapped_weights

    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in mapped_weights(folder).values():
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] += 1
        sizes[name] += tensor.nbytes
    return ", ".join(
        f"{counts[name]} in {name} ({_shown(size)})" for name, size in sizes.most_common()
    )


def _shown(size: int) -> str:
    """Bytes for a reader."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
