"""``unitify check``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unitify.cli.application import app
from unitify.cli.options import Factory, InputsFunction, RecipeName, RuleFiles
from unitify.cli.terminal import progress_bar, reported

if TYPE_CHECKING:
    from unitify.check.outcome import Outcome
    from unitify.check.plan_faults import Comparison
    from unitify.check.settings import Settings
    from unitify.cli.target import Target
    from unitify.recipe.recipe import Recipe

#: Exit statuses; 2, for usage and errors, is that of every command.
CLEAN, FOUND = 0, 1

Texts = list[str]


def _option(*names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help)


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="pkg.module:factory, a Hugging Face folder, or a converted folder.",
        ),
    ],
    model: Factory = None,
    inputs: InputsFunction = None,
    transformed: Annotated[
        bool, typer.Option("--transformed", help="Transform the model first, and check the result.")
    ] = False,
    scales: Annotated[
        str,
        _option(
            metavar="auto|measured|analysis",
            help="Judge measured RMS (auto: if weights hold data) or predicted RMS. The scales of "
            "--transformed come from the same.",
        ),
    ] = "auto",
    recipe: RecipeName = None,
    format: Annotated[
        str | None,
        _option(
            metavar="F[/B]",
            help="Judge every stored tensor by this: e4m3, e4m3/e5m2, or unit for unit RMS.",
        ),
    ] = None,
    values: Annotated[
        str | None,
        _option(metavar="stored|cast", help="All stored tensors, or only those that are cast."),
    ] = None,
    plan: Annotated[
        Path | None,
        _option(metavar="FILE", help="A committed plan.json, which a new plan must equal."),
    ] = None,
    select: Annotated[
        Texts, _option(metavar="CODE|PATTERN", help="Report only these; repeatable.")
    ] = [],  # noqa: B006  (typer copies it)
    ignore: Annotated[
        Texts, _option(metavar="CODE|PATTERN", help="Do not report these; repeatable.")
    ] = [],  # noqa: B006
    baseline: Annotated[
        str | None, _option(metavar="FILE", help="Known findings (unitify-baseline.json).")
    ] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="Add all findings to it, and succeed.")
    ] = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Succeed with any findings.")
    ] = False,
    is_whole: Annotated[
        bool, typer.Option("--all", help="List each finding, also those that follow from others.")
    ] = False,
    output_format: Annotated[
        Texts,
        _option(
            metavar="FORMAT[=FILE]",
            help="text, json, sarif, github, junit, markdown; repeatable (default: text).",
        ),
    ] = [],  # noqa: B006
    output_file: Annotated[
        Path | None,
        _option(metavar="FILE", help="The file of a format that names none."),
    ] = None,
    rules: RuleFiles = [],  # noqa: B006
) -> None:
    """Find every tensor that a number format cannot hold, and the line that computes it.

    Exit status: 0 nothing found, 1 something found, 2 wrong usage or an error.
    """

    from unitify.check.baseline import against, read_baseline, write_baseline
    from unitify.check.checking import steps
    from unitify.check.outputs import read_outputs, write_outputs
    from unitify.check.plan_faults import Comparison, read_plan
    from unitify.check.settings import read_settings
    from unitify.check.text import counted
    from unitify.cli.target import read_target
    from unitify.recipe.reader import configured_recipe, read_recipe
    from unitify.recipe.recipe import FP8

    with reported():
        outputs = read_outputs(output_format, output_file)
        settings = read_settings(
            Path(),
            format=format,
            values=values,
            select=tuple(select) or None,
            ignore=tuple(ignore) or None,
            baseline=baseline,
        )
        casts = read_recipe(recipe) if recipe is not None else configured_recipe(Path())
        committed = read_plan(plan) if plan is not None else None
        known = read_baseline(Path(settings.baseline)) if not update_baseline else {}
    names = (
        "read",
        *(("transform",) if transformed else ()),
        "capture",
        *steps(scales != "analysis"),
    )
    with reported(), progress_bar(names) as advance:
        found = read_target(target, model=model, inputs=inputs, rules=rules)
        advance("read")
        if transformed:
            found = _transformed(found, casts or FP8, scales, rules)
            advance("transform")
        comparison = Comparison(committed=committed, path=str(plan))
        outcome = _outcome(
            found, target, settings, casts or FP8, scales, comparison, rules, advance
        )
    stdout = sys.stdout
    with reported():
        if update_baseline:
            written = write_baseline(Path(settings.baseline), outcome)
            typer.echo(f"{counted(written, 'finding')} written to {settings.baseline}", err=True)
            raise typer.Exit(CLEAN)
        outcome = against(outcome, known)
        write_outputs(outcome, outputs, stdout, is_whole)
    raise typer.Exit(CLEAN if outcome.is_clean or exit_zero else FOUND)


def _outcome(
    found: Target,
    target: str,
    settings: Settings,
    recipe: Recipe,
    scales: str,
    comparison: Comparison,
    rules: list[Path],
    advance: Callable[[str], None],
) -> Outcome:
    from unitify.capture.inputs import as_inputs
    from unitify.capture.source import Repository
    from unitify.check.checking import check as check_subject
    from unitify.check.source_lines import SourceLines
    from unitify.check.subject import subject_of
    from unitify.estimating import measures
    from unitify.rulebook.rule_table import load_rules

    table = load_rules(rules)
    args, kwargs = as_inputs(found.model, found.batches[0]) if found.batches else ((), None)
    subject = subject_of(found.model, args, kwargs, recipe, table)
    advance("capture")
    is_measured = measures(scales, (part.capture for part in subject.parts))
    figures = "measured" if is_measured else "analysis"
    planned = subject.module.scales if subject.module is not None else ""
    comparison = dataclasses.replace(comparison, drift=planned == figures)
    outcome = check_subject(
        subject,
        settings,
        table,
        SourceLines(Repository.around(Path()), subject.model, found.entry),
        target=target,
        is_measured=is_measured,
        batches=found.batches,
        comparison=comparison,
        on_step=advance,
    )
    if planned and not comparison.drift:
        note = f"drift is not judged: the plan has other scales; check with --scales {planned}"
        outcome = dataclasses.replace(outcome, notes=(*outcome.notes, note))
    return outcome


def _transformed(found: Target, recipe: Recipe, scales: str, rules: list[Path]) -> Target:
    from unitify.capture.inputs import as_inputs
    from unitify.transforming import transform

    args, kwargs = as_inputs(found.model, found.batches[0]) if found.batches else ((), None)
    batches = list(found.batches) or None
    module = transform(
        found.model, args, kwargs, scales=scales, batches=batches, recipe=recipe, rules=rules
    )
    return dataclasses.replace(found, model=module)
