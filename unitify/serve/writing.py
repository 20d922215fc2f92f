"""Writes a folder that runtimes load: layers and caches at their scales, files, config, contents.

Takes what was folded; gives an ``Export``. Its reader opens the folder before it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitify.capture.inputs import Inputs
from unitify.checkpoint.files import CONFIG
from unitify.checkpoint.new_folder import Folder, new_folder
from unitify.diagnostics import Diagnostic, NotFinite, NotFolded, UnitifyError, check_package
from unitify.formats.table import E4M3
from unitify.recipe.recipe import Recipe
from unitify.serve.cached import Cached
from unitify.serve.contents import write_contents
from unitify.serve.families import FAMILIES, Family
from unitify.serve.layouts import LAYOUTS, Layout
from unitify.serve.reopened import LEAST, reopened
from unitify.serve.served import Served
from unitify.serve.shards import INDEX, OnBytes, Promise, index, write_shard

#: Takes the number of bytes to write; gives a function of the bytes written since its last call.
OnStart = Callable[[int], OnBytes]


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


@dataclass(frozen=True)
class FoldedModel:
    """A model as scales of a layout.

    ``layout``: by name. ``model``: computes what the folder is compared with; ``original``: one of
    the class that the reader makes. ``shards``: its tensors, by file. ``config``: that of the
    model; ``companions``: files to copy.
    """

    layout: str
    recipe: Recipe
    model: nn.Module
    original: nn.Module
    shards: Mapping[str, Mapping[str, Tensor]]
    layers: tuple[Served, ...]
    caches: tuple[Cached, ...]
    config: Mapping[str, Any]
    companions: tuple[Path, ...] = ()

    def check(self) -> None:
        """Raises ``UnitifyError`` (U614) where the layout does not support a layer or a cache."""
        layout = LAYOUTS[self.layout]
        weights = {name: tensor for held in self.shards.values() for name, tensor in held.items()}
        _check(self.layers, layout, self.layout, weights)
        _check_caches(self.caches, FAMILIES[layout.family], self.original)


def check_packages(layout: str) -> None:
    """Raises ``UnitifyError`` (U005) where a package that a layout needs is not installed."""
    for package in FAMILIES[LAYOUTS[layout].family].packages:
        check_package(package, "writing and reading checkpoints for runtimes")


def write_folder(
    output: Path,
    folded: FoldedModel,
    calls: Iterable[Inputs],
    request: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    on_start: OnStart = lambda _size: lambda _bytes: None,
) -> Export:
    """Write ``folded`` to the new folder ``output``. ``calls`` compare it with its model, if any.

    Raises ``UnitifyError``: U614 like ``FoldedModel.check``; U615 for a folder whose reader gives
    other outputs; U605, U606 and U617 like ``new_folder``.
    """
    folded.check()
    layout = LAYOUTS[folded.layout]
    family = FAMILIES[layout.family]
    placed = promised(folded.shards, folded.layers, folded.caches, layout)
    ignored = sorted(_layers(folded) - {each.layer for each in folded.layers})
    described = layout, ignored, bool(folded.caches)
    calls = list(calls)
    with new_folder(output, request, resume=resume) as folder:
        total = _write(folder, placed, on_start)
        folder.copy(path for path in folded.companions if path.name != CONFIG)
        own = {"dtype": layout.dtype} if layout.dtype else {}
        config = {**folded.config, "quantization_config": family.config(*described), **own}
        folder.write(CONFIG, config)
        for file, written in family.files(*described).items():
            folder.write(file, written)
        least = folded.recipe.min_sqnr or LEAST
        sqnr = None
        if calls:
            opened = partial(family.opened, folded.original)
            sqnr = reopened(folder.partial, folded.model, calls, least, opened)
        write_contents(
            folder, folded.layout, folded.recipe, sqnr,
            layers=[_layer_row(each) for each in folded.layers],
            caches=[asdict(each) for each in folded.caches],
        )  # fmt: skip
    return Export(folded.layout, folded.layers, folded.caches, total, sqnr, family.notes)


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


def _check(
    layers: Iterable[Served],
    layout: Layout,
    name: str,
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


def _layers(folded: FoldedModel) -> set[str]:
    """Linear layers of the model, and what runtimes may take for one: matrices of the checkpoint
    other than embeddings, such as routers, and experts that are one tensor in the model."""
    modules = dict(folded.original.named_modules())
    names = {name for held in folded.shards.values() for name, t in held.items() if t.dim() == 2}
    paths = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    linear = {path for path, module in modules.items() if isinstance(module, nn.Linear)}
    return linear | {path for path in paths if not isinstance(modules.get(path), nn.Embedding)}


def _layer_row(row: Served) -> dict[str, Any]:
    """A layer as a row of ``CONTENTS``, with the window of its input's scale."""
    return {**asdict(row), "window": list(row.window), "margin": round(row.margin, 2)}
