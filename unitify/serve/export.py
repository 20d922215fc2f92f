"""``export``: from a Hugging Face folder to one that runtimes load, tensor by tensor.

    open ─► record ─► estimate ─► plan ─► choose ─► fold ─► write ─► reopen

Weights stay in their files. They are read where an estimate needs them, and once to be written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitify.analysis.forward import ForwardMoments
from unitify.capture.inputs import Inputs, as_inputs, infer_inputs
from unitify.capture.islands import Recording, with_true_parameters
from unitify.capture.whole import Capture
from unitify.cast.casting import Evidence, by_evidence, chosen
from unitify.checkpoint.files import mapped_shards
from unitify.checkpoint.new_folder import Folder, check_absent, new_folder
from unitify.checkpoint.pretrained import CONFIG, companions, read_config
from unitify.checkpoint.targets import input_batches
from unitify.diagnostics import (
    CheckpointUnreadable,
    Diagnostic,
    NotFinite,
    NotFolded,
    UnitifyError,
)
from unitify.estimates import Estimates, Rms
from unitify.estimating import check_scales, estimated
from unitify.formats.table import E4M3
from unitify.part import Part, parts_of
from unitify.plan.bands import tolerance_of
from unitify.plan.planner import plan
from unitify.recipe.recipe import Recipe
from unitify.rulebook.laws import is_scalable
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.serve.cached import Cached, cached
from unitify.serve.contents import write_contents
from unitify.serve.families import FAMILIES, Family
from unitify.serve.layouts import LAYOUTS, Layout
from unitify.serve.mapped import mapped_model, recorded
from unitify.serve.reopened import LEAST, check_package, reopened
from unitify.serve.served import Served, served
from unitify.serve.shards import INDEX, OnBytes, Promise, index, write_shard
from unitify.version import __version__

#: The values of ``--format`` other than "unitify".
FORMATS = ("compressed-tensors", "fp8-dynamic", "fp8-block", "modelopt")


@dataclass(frozen=True)
class Export:
    """A written export: its layers in eight bits or fewer, and its error.

    ``caches``: the scales of keys and values, where the recipe has a ``kv_cache``.
    ``sqnr``: signal to noise of the outputs in decibels; None where not verified. ``size``: bytes.
    """

    layout: str
    layers: tuple[Served, ...]
    caches: tuple[Cached, ...]
    size: int
    sqnr: float | None = None
    notes: tuple[Diagnostic, ...] = field(default=())


def layout_of(name: str, recipe: Recipe) -> str:
    """The layout of a ``--format``; the name of a family means the one of the recipe's formats.

    Raises ``UnitifyError`` (U614) where there is none.
    """
    if name in LAYOUTS:
        return name
    for found, layout in LAYOUTS.items():
        if layout.family == name and recipe.forward.name in layout.formats:
            return found
    problem = f"no layout of {name} holds operands in {recipe.forward.name}"
    raise UnitifyError(NotFolded(value=recipe.name, problem=problem))


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
    on_start: Callable[[int], OnBytes] = lambda _size: lambda _bytes: None,
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
    layout = LAYOUTS[name]
    family = FAMILIES[layout.family]
    for package in family.packages:
        check_package(package, "writing and reading checkpoints for runtimes")
    shards = mapped_shards(checkpoint)
    if not (checkpoint / CONFIG).is_file():
        problem = "it has no config.json, which runtimes need"
        raise UnitifyError(CheckpointUnreadable(path=str(checkpoint), problem=problem))
    weights = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    model, notes = mapped_model(checkpoint, weights)
    table = load_rules(rules)
    batches = input_batches(inputs) if inputs is not None else []
    calls = [as_inputs(model, batch) for batch in batches] or [infer_inputs(model)]
    recording = with_true_parameters(recorded(model, calls))
    parts = _parts(recording, calls, scales, recipe, table)
    layers, caches = served(model, parts, recipe, table), cached(parts, table)
    _check(layers, layout, name, model, weights)
    _check_caches(caches, family, model)
    placed = promised(shards, layers, caches, layout)
    request = _request(checkpoint, shards, layers, caches, name)
    ignored = sorted(_linear_layers(model) - {each.layer for each in layers})
    described = layout, ignored, bool(caches)
    with new_folder(output, request, resume=resume) as folder:
        total = _write(folder, placed, on_start)
        folder.copy(path for path in companions(checkpoint) if path.name != CONFIG)
        folder.write(CONFIG, _config(checkpoint, layout, family.config(*described)))
        for file, written in family.files(*described).items():
            folder.write(file, written)
        least = recipe.min_sqnr or LEAST
        sqnr = reopened(folder.partial, model, calls, least, family.opened) if verify else None
        write_contents(
            folder, name, recipe, sqnr,
            layers=[_layer_row(each) for each in layers],
            caches=[asdict(each) for each in caches],
        )  # fmt: skip
    return Export(name, layers, caches, total, sqnr, (*notes, *family.notes))


def _write(
    folder: Folder, placed: Mapping[str, list[Promise]], on_start: Callable[[int], OnBytes]
) -> int:
    """Write all files of weights, and return their size in bytes."""
    total = sum(p.size for promises in placed.values() for p in promises)
    on_bytes = on_start(total)
    for file, promises in placed.items():
        write = partial(write_shard, promises=promises, on_bytes=on_bytes)
        if not folder.once(file, write):
            on_bytes(sum(p.size for p in promises))
    if len(placed) > 1:
        folder.write(INDEX, index(placed), sort_keys=True)
    return total


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
        parts.append(part)
    return parts


def _predicted(capture: Capture, rules: RuleTable) -> Estimates:
    """The predicted RMS of every value, without gradients."""
    moments = ForwardMoments(capture, rules, None)
    moments.run()
    nodes = (node for node in capture.graph.nodes if is_scalable(node))
    return {node.name: Rms(moments.rms(node)) for node in nodes}


def _check(
    layers: Iterable[Served],
    layout: Layout,
    name: str,
    model: nn.Module,
    weights: Mapping[str, Tensor],
) -> None:
    """Raises ``UnitifyError`` (U614) where the layout does not support a layer."""
    wrong = []
    for each in layers:
        weight = weights.get(f"{each.layer}.weight")
        problem = ""
        if each.format not in layout.formats:
            problem = f"{name} does not support {each.format}"
        elif weight is None:
            problem = "its weight has another name in the checkpoint"
        elif weight.shape[1] % layout.multiple:
            problem = f"its width {weight.shape[1]} is not divisible by {layout.multiple}"
        if problem:
            wrong.append(NotFolded(value=each.layer, problem=problem))
    if wrong:
        raise UnitifyError(*wrong)


def _check_caches(caches: Iterable[Cached], family: Family, model: nn.Module) -> None:
    """Raises ``UnitifyError`` (U614) where runtimes do not support the format of a cache."""
    wrong = []
    modules = dict(model.named_modules())
    for each in caches:
        problem = ""
        if each.format != E4M3.name:
            problem = f"runtimes keep keys and values in e4m3, not in {each.format}"
        for name in family.cache_scales(each):
            layer = name.rpartition(".")[0]
            if layer not in modules:
                problem = f"the layout has its scales below {layer}, which the model has not"
        if problem:
            wrong.append(NotFolded(value=each.attention, problem=problem))
    if wrong:
        raise UnitifyError(*wrong)


def promised(
    shards: Mapping[str, Mapping[str, Tensor]],
    layers: Iterable[Served],
    caches: Iterable[Cached],
    layout: Layout,
) -> dict[str, list[Promise]]:
    """The tensors to write, by file: those of the shards, with codes and scales of ``layers``.

    The scales of ``caches`` are in the first file.
    """
    rows = {f"{each.layer}.weight": each for each in layers}
    family = FAMILIES[layout.family]
    placed: dict[str, list[Promise]] = {}
    for position, held in enumerate(shards.values(), 1):
        several = f"-{position:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        promises = placed[f"model{several}.safetensors"] = []
        for name, tensor in held.items():
            if name in rows:
                promises += _coded(name, tensor, rows[name], layout)
            else:
                shape = tuple(tensor.shape)
                promises.append(Promise(name, tensor.dtype, shape, partial(_as_it_is, tensor)))
        if position == 1:
            for each in caches:
                for name, scale in family.cache_scales(each).items():
                    shape = tuple(scale.shape)
                    promises.append(Promise(name, scale.dtype, shape, partial(_as_it_is, scale)))
    return placed


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _coded(name: str, weight: Tensor, row: Served, layout: Layout) -> list[Promise]:
    """Promises of the tensors of a weight. All are made when the first one is needed."""
    shapes = layout.made(torch.empty(weight.shape, device="meta"), row)
    made: dict[str, Tensor] = {}

    def of(ending: str) -> Tensor:
        if not made:
            wide = weight.float()
            if bad := int((~wide.isfinite()).sum()):
                raise UnitifyError(NotFinite(name=name, count=bad))
            made.update(layout.made(wide, row))
        return made.pop(ending)

    return [
        Promise(f"{row.layer}.{ending}", t.dtype, tuple(t.shape), partial(of, ending))
        for ending, t in shapes.items()
    ]


def _linear_layers(model: nn.Module) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def _config(checkpoint: Path, layout: Layout, quantization: dict[str, Any]) -> dict[str, Any]:
    document = read_config(checkpoint)
    document["quantization_config"] = quantization
    if layout.dtype:
        document["dtype"] = layout.dtype
    return document


def _layer_row(row: Served) -> dict[str, Any]:
    """A layer as a row of ``CONTENTS``, with the window of its input's scale."""
    return {**asdict(row), "window": list(row.window), "margin": round(row.margin, 2)}


def _request(
    checkpoint: Path,
    shards: Mapping[str, Any],
    layers: Iterable[Served],
    caches: Iterable[Cached],
    name: str,
) -> dict[str, Any]:
    """The identity of an export, for ``resume``: its source files, and every scale."""
    stats = {file: (checkpoint / file).stat() for file in shards}
    return {
        "files": {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()},
        "layers": [asdict(each) for each in layers],
        "caches": [asdict(each) for each in caches],
        "layout": name,
        "version": __version__,
    }
