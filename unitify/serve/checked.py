"""``check_folder``: is a written folder undamaged, and does it match its source?

Hashes show damage. To compare with the source, every tensor is made again and compared byte by
byte, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from unitify.checkpoint.converted import damaged, read_document
from unitify.checkpoint.files import mapped_shards
from unitify.checkpoint.new_folder import sha256
from unitify.diagnostics import FolderDamaged, UnitifyError, UnknownOption, check_package
from unitify.documents import MalformedError, first_line, inside, malformed
from unitify.formats.powers import is_power_of_two
from unitify.rows import made
from unitify.serve.cached import Cached
from unitify.serve.contents import CONTENTS, FORMAT, ONNX, ONNX_FILE
from unitify.serve.layouts import LAYOUTS, Layout
from unitify.serve.served import Served
from unitify.serve.writing import promised


def check_folder(folder: Path, source: Path | None = None) -> int:
    """Check ``folder``, and return the number of its tensors. ``source``: its original folder.

    Raises ``UnitifyError``: U607 with everything that changed since it was written, or differs from
    ``source``; U601 for a source that cannot be read.
    """
    document = _contents(folder)
    problems = list(_damaged(folder, document["sha256"]))
    _check_none(folder, problems)
    if document.get("layout") == ONNX:
        return _tensors_of_onnx(folder, source)
    held = {n: t for shard in mapped_shards(folder).values() for n, t in shard.items()}
    if source is None:
        return len(held)
    shards = mapped_shards(source)
    try:
        layout = LAYOUTS[document["layout"]]
        layers = [_layer(row, layout, shards) for row in document["layers"]]
        caches = [_cache(row) for row in document["caches"]]
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(folder, f"{CONTENTS} has no valid layers ({first_line(error)})") from None
    placed = promised(shards, layers, caches, layout)
    expected = {p.name: p for promises in placed.values() for p in promises}
    for name in sorted(expected.keys() ^ held.keys()):
        problems.append(f"{name} is in only one of folder and source")
    for name, promise in expected.items():
        if name in held:
            new, found = promise.make(), held[name]
            if new.dtype != found.dtype or not torch.equal(_bytes(new), _bytes(found)):
                problems.append(f"{name} differs from that of the source")
    _check_none(folder, problems)
    return len(held)


def _check_none(folder: Path, problems: list[str]) -> None:
    if problems:
        raise UnitifyError(*(FolderDamaged(path=str(folder), problem=p) for p in problems))


def _tensors_of_onnx(folder: Path, source: Path | None) -> int:
    if source is not None:
        choices = "nothing: a graph of ONNX was compared with its source by outputs"
        raise UnitifyError(UnknownOption(option="--source", value=str(source), choices=choices))
    check_package("onnx", "counting the tensors of ONNX")
    import onnx

    try:
        with malformed("not a graph of ONNX"):
            graph = onnx.load(inside(folder, ONNX_FILE), load_external_data=False).graph
    except (OSError, MalformedError) as error:
        raise damaged(folder, f"{ONNX_FILE}: {first_line(error)}") from None
    return len(graph.initializer)


def _layer(row: Any, layout: Layout, shards: Mapping[str, Mapping[str, Any]]) -> Served:
    """The layer of a row, which the layout can make from a weight of the source.

    Raises ``ValueError``. The window and its margin follow from the other entries.
    """
    derived = ("window", "margin")
    given = {k: v for k, v in row.items() if k not in derived} if isinstance(row, Mapping) else row
    layer = made(Served, given)
    name = f"{layer.layer}.weight"
    weight = next((held[name] for held in shards.values() if name in held), None)
    is_matrix = weight is not None and weight.dim() == 2 and weight.is_floating_point()
    if layer.format not in layout.formats or not _are_scales(layer.weight, layer.input):
        raise ValueError(f"{name} is not cast so")
    if weight is not None and not (is_matrix and weight.shape[1] % layout.multiple == 0):
        raise ValueError(f"{name} of the source is not cast so")
    return layer


def _cache(row: Any) -> Cached:
    cache = made(Cached, row)
    if not _are_scales(cache.key, cache.value):
        raise ValueError(f"{cache.attention} has other scales")
    return cache


def _are_scales(*numbers: float) -> bool:
    """Are all of them powers of two that float32 holds, with their reciprocals?"""
    return all(is_power_of_two(n) and 2.0**-126 <= n <= 2.0**126 for n in numbers)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _contents(folder: Path) -> dict[str, Any]:
    document = read_document(folder, CONTENTS)
    is_ours = isinstance(document, dict) and document.get("format") == FORMAT
    hashes = document.get("sha256") if is_ours else None
    if not (isinstance(hashes, dict) and all(isinstance(h, str) for h in hashes.values())):
        raise damaged(folder, f"{CONTENTS} has not the format {FORMAT}")
    found: dict[str, Any] = document
    return found


def _damaged(folder: Path, hashes: Mapping[str, str]) -> Iterator[str]:
    for name, digest in hashes.items():
        try:
            file = inside(folder, name)
            if "/" in name or not file.is_file() or sha256(file) != digest:
                yield f"{name} is missing or has changed"
        except (OSError, ValueError) as error:
            yield f"{name}: {first_line(error)}"
    for path in sorted(folder.iterdir()):
        if path.name != CONTENTS and path.name not in hashes:
            yield f"{path.name} was added later"
