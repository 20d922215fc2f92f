"""``export``: from a Hugging Face folder to one that runtimes load, tensor by tensor.

    open ─► record ─► estimate ─► plan ─► choose ─► fold ─► write ─► reopen

Weights stay in their files. They are read where an estimate needs them, and once to be written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unitify.analysis.forward import ForwardMoments
from unitify.capture.inputs import Inputs, as_inputs, infer_inputs, written_inputs
from unitify.capture.islands import Recording, with_true_parameters
from unitify.capture.whole import Capture
from unitify.cast.casting import Evidence, by_evidence, chosen
from unitify.cast.joint import joint
from unitify.checkpoint.files import CONFIG, mapped_shards
from unitify.checkpoint.new_folder import check_absent
from unitify.checkpoint.pretrained import companions, read_config
from unitify.checkpoint.targets import input_batches
from unitify.diagnostics import (
    CheckpointUnreadable,
    UnitifyError,
)
from unitify.estimates import Estimates, Rms
from unitify.estimating import check_scales, estimated
from unitify.part import Part, parts_of
from unitify.plan.bands import tolerance_of
from unitify.plan.planner import plan
from unitify.recipe.recipe import Recipe
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.serve.cached import cached
from unitify.serve.mapped import mapped_model, recorded
from unitify.serve.served import served
from unitify.serve.writing import (
    Export,
    FoldedModel,
    OnStart,
    check_packages,
    layout_of,
    write_folder,
)
from unitify.version import __version__

#: The values of ``--format`` other than "unitify".
FORMATS = ("compressed-tensors", "fp8-dynamic", "fp8-block", "modelopt")


def export(
    checkpoint: Path,
    output: Path,
    recipe: Recipe,
    format: str,
    *,
    inputs: str | None = None,
    scales: str = "auto",
    rules: Iterable[str | Path] = (),
    verify: bool = True,
    resume: bool = False,
    on_start: OnStart = lambda _size: lambda _bytes: None,
) -> Export:
    """Write the model of a Hugging Face folder to the new folder ``output``, in a layout.

    ``inputs``, ``scales`` and ``rules`` are those of ``convert``, except that "auto" is "analysis":
    weights stay in their files, and the model does not run. ``verify``: open the written folder
    with its reader, and compare the outputs. ``resume``: continue after an interrupted run of the
    same call. ``on_start`` takes the number of bytes to write, and returns a function that takes
    the bytes written since its last call.

    Raises ``UnitifyError``: those of ``convert``; U614 for casts that do not fold; U615 for a
    folder whose reader gives other outputs. Nothing is written then.
    """
    check_scales(scales)
    check_absent(output)
    name = layout_of(format, recipe)
    check_packages(name)
    shards = mapped_shards(checkpoint)
    if not (checkpoint / CONFIG).is_file():
        problem = "it has no config.json, which runtimes need"
        raise UnitifyError(CheckpointUnreadable(path=str(checkpoint), problem=problem))
    weights = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    model, notes = mapped_model(checkpoint, weights)
    table = load_rules(rules)
    batches = input_batches(inputs) if inputs is not None else []
    calls = [as_inputs(model, batch) for batch in batches]
    runs = recipe.is_chosen or scales == "measured"
    calls = calls or [written_inputs(model) if runs or verify else infer_inputs(model)]
    recording = with_true_parameters(recorded(model, calls, runs=runs))
    parts = _parts(recording, calls, scales, recipe, table)
    folded = FoldedModel(
        name, recipe, model, model, shards, served(model, parts, recipe, table),
        cached(parts, table), read_config(checkpoint), tuple(companions(checkpoint)),
    )  # fmt: skip
    request, own = _request(checkpoint, folded), calls if verify else []
    made = write_folder(output, folded, own, request, resume=resume, on_start=on_start)
    return replace(made, notes=(*notes, *made.notes))


def _parts(
    recording: Recording, calls: list[Inputs], scales: str, recipe: Recipe, rules: RuleTable
) -> list[Part]:
    """Parts with plans that leave values true, and with the choices of the recipe."""
    is_run = scales == "measured"
    if is_run:
        known = estimated(recording, scales, calls, None, rules).parts
    else:
        recorded = parts_of(recording.parts)
        known = tuple(replace(p, estimates=_predicted(p.capture, rules)) for p in recorded)
    parts = []
    for part in known:
        own = plan(part.capture, part.estimates, rules, tolerance_of(is_run), "casts")
        part = chosen(replace(part, plan=own), recipe, rules)
        if recipe.is_chosen:
            part, _ = by_evidence(part, recipe, rules, Evidence())
        parts.append(joint(part, rules))
    return parts


def _predicted(capture: Capture, rules: RuleTable) -> Estimates:
    """The predicted RMS of every value, without gradients."""
    moments = ForwardMoments(capture, rules, None)
    moments.run(backward=False)
    nodes = (node.name for node in capture.graph.nodes if is_scalable(node))
    return {name: Rms(moments.steps[name].rms) for name in nodes if name in moments.steps}


def _request(checkpoint: Path, folded: FoldedModel) -> dict[str, Any]:
    """The identity of an export, for ``resume``: its source files, and every scale."""
    stats = {file: (checkpoint / file).stat() for file in folded.shards}
    return {
        "files": {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()},
        "layers": [asdict(each) for each in folded.layers],
        "caches": [asdict(each) for each in folded.caches],
        "layout": folded.layout,
        "version": __version__,
    }
