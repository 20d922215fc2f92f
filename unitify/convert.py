"""``convert``: from a checkpoint on disk to a converted folder on disk.

    read ─► transform ─► measure ─► report ─► write

The command line calls this, and prints the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from unitify.capture.inputs import as_inputs, infer_inputs
from unitify.capture.sizes import RECORDING_SECONDS
from unitify.checkpoint.files import (
    CONFIG,
    check_no_adapter,
    check_unsafe_load,
    read_pickled,
    read_state_dicts,
    weight_files,
)
from unitify.checkpoint.filling import NOTHING, Allowed, fill
from unitify.checkpoint.folder import write
from unitify.checkpoint.new_folder import check_absent, sha256
from unitify.checkpoint.pretrained import companions, read_pretrained
from unitify.checkpoint.state_dict import check_finite
from unitify.checkpoint.targets import build_model, input_batches
from unitify.diagnostics import Diagnostic, ModelNeeded, UnitifyError
from unitify.estimating import check_scales, estimated
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe
from unitify.report.report import Report, make_report
from unitify.rulebook.rule_table import load_rules
from unitify.transforming import transform


@dataclass(frozen=True)
class Source:
    """A model with the weights of a checkpoint, and their origin.

    ``files``: SHA-256 of every file of weights, by name. ``notes``: changes to the weights.
    ``companions``: files of config and tokenizer.
    """

    model: nn.Module
    files: Mapping[str, str]
    notes: tuple[Diagnostic, ...] = ()
    companions: tuple[Path, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def stages(verify: bool = True, recipe: Recipe | None = None) -> tuple[str, ...]:
    """The names of the stages of ``convert``, in the order of the calls of ``on_stage``."""
    checked = ("verify",) if verify else ()
    casting = ("cast",) if recipe is not None else ()
    estimated = ("estimate",) if recipe is None or recipe.scaling == "unit" else ()
    return ("read", "capture", *estimated, "plan", "rewrite", *checked, *casting, "report", "write")


def convert(
    checkpoint: Path,
    output: Path,
    *,
    model: str | None = None,
    inputs: str | None = None,
    recipe: str | Recipe | None = None,
    scales: str = "auto",
    rules: Iterable[str | Path] = (),
    verify: bool = True,
    recording_seconds: float | None = RECORDING_SECONDS,
    allowed: Allowed = NOTHING,
    unsafe_load: str | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Transform the model of ``checkpoint`` and write it to the new folder ``output``.

    ``checkpoint``: a local Hugging Face folder, or weights for the module that the factory
    ``model`` ("package.module:factory") returns: a ``.safetensors`` or ``.pt`` file, a folder of
    shards, or one of ``torch.distributed.checkpoint``. ``allowed``: names that may be missing or
    unexpected. ``inputs``: the name of a function that returns the example: a tensor, a tuple, a
    dict, or a list of tuples and dicts (batches; the first is the example, all are measured).
    ``recording_seconds``: that of ``transform``. ``unsafe_load``: the reason why the pickle in
    ``checkpoint`` can be trusted; the code in it runs, and plan.json holds the reason. A module
    that was pickled whole needs no ``model``.

    Raises ``UnitifyError``; nothing is written then.
    """
    clock = _Clock(on_stage)
    check_absent(output)
    check_scales(scales)
    casts = read_recipe(recipe)
    rules = tuple(rules)
    source = read_source(checkpoint, model, allowed, unsafe_load)
    # After the model's own module, which may register the operations of the rules.
    table = load_rules(rules)
    batches = input_batches(inputs) if inputs is not None else None
    args, kwargs = as_inputs(source.model, batches[0]) if batches else ((), {})
    clock.done("read")
    module = transform(
        source.model,
        args,
        kwargs,
        scales=scales,
        batches=batches,
        recipe=casts,
        verify=verify,
        recording_seconds=recording_seconds,
        rules=rules,
        on_stage=clock.done,
    )
    notes = (*source.notes, *module.diagnostics)
    module.about = replace(module.about, diagnostics=notes)
    # The report uses measured RMS, even where the scales were predicted.
    if module.scales == "measured":
        measured = {part.name: part.estimates for part in clock.made["estimate"].parts}
    else:
        given = [as_inputs(source.model, batch) for batch in batches or ()]
        calls = given or [infer_inputs(source.model)]
        known = estimated(clock.made["capture"], "measured", calls, None, table, drawn=not given)
        measured = {part.name: part.estimates for part in known.parts}
    clock.done("report")
    report = make_report(
        module,
        measured,
        table,
        seconds=clock.seconds,
    )
    write(
        output,
        module,
        report.as_json(),
        versions=source.versions,
        source={
            "name": checkpoint.name,
            "sha256": dict(source.files),
            **({"unsafe_load": unsafe_load} if unsafe_load is not None else {}),
        },
        companions=source.companions,
    )
    clock.done("write")
    return report


def read_source(
    checkpoint: Path,
    model: str | None,
    allowed: Allowed = NOTHING,
    unsafe_load: str | None = None,
) -> Source:
    """The model of a checkpoint, made by the factory ``model`` where that is given.

    Raises ``UnitifyError`` (U001, U004, U005, U204, U6xx).
    """
    check_no_adapter(checkpoint)
    is_unsafe = unsafe_load is not None
    if unsafe_load is not None:
        check_unsafe_load(checkpoint, unsafe_load)
    if model is None and (checkpoint / CONFIG).is_file():
        return _read_pretrained(checkpoint, allowed, is_unsafe)
    if model is None and is_unsafe and checkpoint.is_file():
        loaded = read_pickled(checkpoint, unsafe=True)
        if isinstance(loaded, nn.Module):
            check_finite(loaded)
            return Source(loaded, _digests(checkpoint))
    state_dicts = read_state_dicts(checkpoint, unsafe=is_unsafe)
    if model is None:
        raise UnitifyError(ModelNeeded(path=str(checkpoint)))
    built = build_model(model)
    notes = fill(built, state_dicts, str(checkpoint), allowed)
    return Source(built, _digests(checkpoint), notes)


def _read_pretrained(folder: Path, allowed: Allowed, is_unsafe: bool) -> Source:
    from importlib.metadata import version

    weights = read_state_dicts(folder, unsafe=True)[""] if is_unsafe else None
    model, notes = read_pretrained(folder, allowed, weights)
    return Source(
        model,
        _digests(folder),
        notes,
        companions=tuple(companions(folder)),
        versions={"transformers": version("transformers")},
    )


def _digests(checkpoint: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in weight_files(checkpoint)}


class _Clock:
    """Seconds and result of every finished stage."""

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
