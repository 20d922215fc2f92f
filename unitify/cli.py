"""The command line: ``unitify convert`` and ``unitify explain``.

Every failure that a user can cause is one coded line on stderr and exit status 2. Tables go to
stdout, progress to stderr where that is a terminal; ``NO_COLOR`` is honoured.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from unitify.convert import convert as convert_checkpoint
from unitify.convert import stages
from unitify.diagnostics import UnitifyError
from unitify.explain import explain_code, explain_value
from unitify.folder import read, true_model
from unitify.inputs import as_inputs
from unitify.recipe_reader import configured_recipe, read_recipe
from unitify.table import report_table
from unitify.targets import build_model, input_batches
from unitify.version import __version__

app = typer.Typer(
    help="Store every tensor of a PyTorch model near unit scale, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
        help="Returns example inputs: a tuple, a dict, or a list of these (batches).",
    ),
]
RuleFiles = Annotated[
    list[Path], typer.Option("--rules", metavar="FILE", help="A rule file of your own; repeatable.")
]


def main() -> None:
    """The console script ``unitify``."""
    app()


def _print_version(asked: bool) -> None:
    if asked:
        print(f"unitify {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """The options of ``unitify`` itself."""


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT",
            help="A .safetensors or .pt state dict (with --model), or a Hugging Face folder.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to make.")
    ],
    model: Factory = None,
    inputs: InputsFunction = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Where casts go: fp8, fp8,exclude=lm_head or a .toml file; else that of "
            "[tool.unitify] in ./pyproject.toml.",
        ),
    ] = None,
    scales: Annotated[
        str,
        typer.Option(metavar="analysis|measured", help="Predicted without data, or measured."),
    ] = "analysis",
    rules: RuleFiles = [],  # noqa: B006  (typer copies it)
    verify: Annotated[
        bool, typer.Option(help="Compare the result bitwise with the original, before casts.")
    ] = True,
) -> None:
    """Convert a checkpoint: the same function, with every tensor stored near unit RMS."""
    with _reported():
        casts = read_recipe(recipe) if recipe is not None else configured_recipe(Path())
    with _reported(), _progress(stages(scales, verify, casts)) as advance:
        report = convert_checkpoint(
            checkpoint,
            output,
            model=model,
            inputs=inputs,
            recipe=casts,
            scales=scales,
            rules=rules,
            verify=verify,
            on_stage=advance,
        )
    console = Console()
    console.print(report_table(report))
    console.print(f"written to {output}", highlight=False, soft_wrap=True)


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
    """Say what a diagnostic means, or how the scale of a value was derived."""
    with _reported():
        if re.fullmatch(r"[Uu]\d+", subject):
            text = explain_code(subject.upper())
        else:
            text = _derivation(subject, folder, model, inputs, rules)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _derivation(
    name: str, folder: Path | None, model: str | None, inputs: str | None, rules: list[Path]
) -> str:
    """From a converted folder, a factory, or a folder whose model the factory builds."""
    if folder is None and model is None:
        raise typer.BadParameter("a value needs a converted folder or --model")
    built = build_model(model) if model is not None else None
    chosen = None
    if folder is not None:
        converted = read(folder)
        built, chosen = true_model(converted, built), converted.plan
    assert built is not None
    args, kwargs = as_inputs(input_batches(inputs)[0]) if inputs is not None else ((), {})
    return explain_value(name, built, args, kwargs, chosen=chosen, rules=rules)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """A ``UnitifyError`` as one line a finding on stderr, and exit status 2."""
    with warnings.catch_warnings():
        # What torch and transformers warn of on the way is theirs; ours is in the report.
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        except UnitifyError as error:
            console = Console(stderr=True)
            for diagnostic in error.diagnostics:
                line = f"error: {diagnostic}"
                console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(2) from None
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def _progress(names: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """A bar over the stages, gone when they are done; yields what each stage calls at its end."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(names[0], total=len(names))

        def advance(stage: str) -> None:
            following = names[names.index(stage) + 1 :] if stage in names else (stage,)
            progress.update(task, advance=1, description=following[0] if following else stage)

        yield advance
