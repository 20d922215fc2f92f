"""``convert``: from a checkpoint on disk to a converted folder on disk.

    read ─► transform ─► measure ─► report ─► write

The command line calls this and prints what comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from unitify.capture.inputs import as_inputs, infer_inputs
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.checkpoint.files import fill, read_state_dict
from unitify.checkpoint.folder import check_absent, sha256, write
from unitify.checkpoint.pretrained import companions, read_pretrained, weight_files
from unitify.checkpoint.targets import build_model, input_batches
from unitify.diagnostics import ModelNeeded, UnitifyError, UnknownOption
from unitify.measure.recorded import measure_recorded
from unitify.operations.rule_table import load_rules
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe
from unitify.report.report import Report, make_report
from unitify.transform import SCALES, transform


@dataclass(frozen=True)
class Source:
    """A model with the weights of a checkpoint, and where they came from.

    ``files``: SHA-256 of every file of weights, by name. ``companions``: config and tokenizer.
    """

    model: nn.Module
    files: Mapping[str, str]
    companions: tuple[Path, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def stages(scales: str, verify: bool = True, recipe: Recipe | None = None) -> tuple[str, ...]:
    """The stages of ``convert`` in order, as ``on_stage`` hears of them when each is done."""
    checked = ("verify",) if verify else ()
    casting = ("cast",) if recipe is not None else ()
    estimated = (scales,) if recipe is None or recipe.scaling == "unit" else ()
    return ("read", "capture", *estimated, "plan", "rewrite", *checked, *casting, "report", "write")


def convert(
    checkpoint: Path,
    output: Path,
    *,
    model: str | None = None,
    inputs: str | None = None,
    recipe: str | Recipe | None = None,
    scales: str = "analysis",
    rules: Iterable[str | Path] = (),
    verify: bool = True,
    recording_seconds: float | None = RECORDING_SECONDS,
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Transform the model of ``checkpoint`` and write it to the new folder ``output``.

    ``checkpoint``: a ``.safetensors`` or ``.pt`` state dict for the module that the factory
    ``model`` ("package.module:factory") returns, or a local Hugging Face folder. ``inputs`` names
    a function that returns the example: a tuple, a dict, or a list of these (batches; the first
    is the example, all are measured). ``recording_seconds``: as for ``transform``.

    Raises ``UnitifyError``; nothing is written then.
    """
    clock = _Clock(on_stage)
    check_absent(output)
    if scales not in SCALES:
        raise UnitifyError(UnknownOption(option="scales", value=scales, choices=", ".join(SCALES)))
    casts = read_recipe(recipe)
    rules = tuple(rules)
    source = read_source(checkpoint, model)
    # After the model's own module, which may register the operations that the rules are of.
    table = load_rules(rules)
    batches = input_batches(inputs) if inputs is not None else None
    args, kwargs = as_inputs(source.model, batches[0]) if batches else infer_inputs(source.model)
    clock.done("read")
    module = transform(
        source.model,
        args,
        kwargs,
        scales=scales,
        batches=batches if scales == "measured" else None,
        recipe=casts,
        verify=verify,
        recording_seconds=recording_seconds,
        rules=rules,
        on_stage=clock.done,
    )
    # The yardstick of the report is what is measured, whatever the scales were chosen from.
    calls = [as_inputs(source.model, batch) for batch in batches] if batches else [(args, kwargs)]
    measured = clock.made.get("measured") or measure_recorded(clock.made["capture"], calls)
    clock.done("report")
    report = make_report(
        module,
        measured,
        table,
        scales=scales,
        seconds=clock.seconds,
    )
    write(
        output,
        module,
        report.as_json(),
        versions=source.versions,
        source={"name": checkpoint.name, "sha256": dict(source.files), "scales": scales},
        companions=source.companions,
    )
    clock.done("write")
    return report


def read_source(checkpoint: Path, model: str | None) -> Source:
    """The model that a checkpoint and, for a file of weights, the factory ``model`` describe.

    Raises ``UnitifyError`` (U004, U005, U204, U6xx).
    """
    if checkpoint.is_dir():
        if model is not None:
            raise UnitifyError(
                UnknownOption(
                    option="--model", value=model, choices="(none: a folder names its own)"
                )
            )
        return _read_folder(checkpoint)
    state_dict = read_state_dict(checkpoint)
    if model is None:
        raise UnitifyError(ModelNeeded(path=str(checkpoint)))
    built = build_model(model)
    fill(built, state_dict)
    return Source(built, {checkpoint.name: sha256(checkpoint)})


def _read_folder(folder: Path) -> Source:
    from importlib.metadata import version

    model = read_pretrained(folder)
    return Source(
        model=model,
        files={path.name: sha256(path) for path in weight_files(folder)},
        companions=tuple(companions(folder)),
        versions={"transformers": version("transformers")},
    )


class _Clock:
    """Seconds and result of every stage that is done."""

    def __init__(self, on_stage: Callable[[str], None] | None) -> None:
        self.on_stage = on_stage
        self.seconds: dict[str, float] = {}
        self.made: dict[str, Any] = {}
        self.last = time.perf_counter()

    def done(self, stage: str, made: Any = None) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.made[stage] = made
        self.last = now
        if self.on_stage is not None:
            self.on_stage(stage)
