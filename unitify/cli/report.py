"""``unitify report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unitify.cli.application import app
from unitify.cli.options import Factory, InputsFunction, RecipeName, RuleFiles, Scales
from unitify.cli.terminal import progress_bar, reported

if TYPE_CHECKING:
    from unitify.cli.target import Target
    from unitify.module.unit_scaled import UnitScaledModule
    from unitify.recipe.recipe import Recipe


@app.command()
def report(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="pkg.module:factory, a Hugging Face folder, or a converted folder.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file; text goes to the terminal without one.",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="html|json|text|svg|png", help="By default that of FILE's suffix."),
    ] = None,
    model: Factory = None,
    inputs: InputsFunction = None,
    recipe: RecipeName = None,
    scales: Scales = "auto",
    rules: RuleFiles = [],  # noqa: B006  (typer copies it)
    drift: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Readings of unitify.monitor."),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Compare the transformed model bitwise with the original.")
    ] = True,
) -> None:
    """Show the numerics of every value of a model, in the original and as transformed."""

    from unitify.check.settings import read_settings
    from unitify.checkpoint.converted import was_exact
    from unitify.cli.console import open_console
    from unitify.cli.target import read_target
    from unitify.module.unit_scaled import UnitScaledModule
    from unitify.recipe.reader import configured_recipe, read_recipe
    from unitify.report.drift_file import read_drift
    from unitify.report.gathering import ReportInputs, gather
    from unitify.report.model_report import ModelReport, format_of
    from unitify.report.summary import summary
    from unitify.rulebook.rule_table import load_rules

    with reported():
        chosen = format_of(output, format)
        casts = read_recipe(recipe) if recipe is not None else configured_recipe(Path())
        records = () if drift is None else read_drift(drift)
        settings = read_settings(Path())
    stages = ("read", "capture", "estimate", "plan", "rewrite", "verify", "cast", "report")
    with reported(), progress_bar(stages) as advance:
        opened = read_target(target, model=model, inputs=inputs, rules=rules)
        advance("read")
        module, folder = opened.model, opened.converted
        is_drawn = not opened.batches
        if isinstance(module, UnitScaledModule):
            is_drawn &= folder is not None
        else:
            module = _transformed(opened, casts, scales, rules, verify, advance)
        known = ReportInputs(
            rules=load_rules(rules),
            batches=opened.batches,
            target=target,
            drift=records,
            settings=settings,
            is_drawn=is_drawn,
            exact=None if folder is None else was_exact(folder),
        )
        made = ModelReport(gather(module, known))
        written = made.save(output, chosen) if output is not None else ()
    console = open_console()
    if output is None and chosen == "text":
        console.print(summary(made.numerics))
    elif output is None:
        print(made.rendered(chosen).decode(), end="")
    for file in written:
        console.print(f"written to {file}", highlight=False, soft_wrap=True)


def _transformed(
    opened: Target,
    casts: Recipe | None,
    scales: str,
    rules: list[Path],
    verify: bool,
    advance: Callable[[str], None],
) -> UnitScaledModule:
    from unitify.capture.inputs import as_inputs
    from unitify.transforming import transform

    batches = list(opened.batches)
    args, kwargs = as_inputs(opened.model, batches[0]) if batches else ((), {})
    return transform(
        opened.model,
        args,
        kwargs,
        recipe=casts,
        scales=scales,
        batches=batches or None,
        rules=rules,
        verify=verify,
        on_stage=lambda name, _made: advance(name),
    )
