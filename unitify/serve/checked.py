"""``check_folder``: is a written folder undamaged, and does it match its source?

Hashes show damage. To compare with the source, every tensor is made again and compared byte by
byte, one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from unitify.checkpoint.files import mapped_shards
from unitify.checkpoint.new_folder import sha256
from unitify.diagnostics import FolderDamaged, UnitifyError, UnknownOption
from unitify.serve.cached import Cached
from unitify.serve.contents import CONTENTS, FORMAT, ONNX, ONNX_FILE
from unitify.serve.export import promised
from unitify.serve.layouts import LAYOUTS
from unitify.serve.reopened import check_package
from unitify.serve.served import Served

Row = TypeVar("Row", Served, Cached)


def check_folder(folder: Path, source: Path | None = None) -> int:
    """Check ``folder``, and return the number of its tensors. ``source``: its original folder.

    Raises ``UnitifyError``: U607 with everything that changed since it was written, or differs from
    ``source``; U601 for a source that cannot be read.
    """
    document = _contents(folder)
    problems = list(_damaged(folder, document["sha256"]))
    if problems:
        raise UnitifyError(*(FolderDamaged(path=str(folder), problem=p) for p in problems))
    if document["layout"] == ONNX:
        return _tensors_of_onnx(folder, source)
    held = {n: t for shard in mapped_shards(folder).values() for n, t in shard.items()}
    if source is None:
        return len(held)
    try:
        layers = [_row(Served, row) for row in document["layers"]]
        caches = [_row(Cached, row) for row in document["caches"]]
        layout = LAYOUTS[document["layout"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise _damage(folder, f"{CONTENTS} has no valid layers ({error})") from None
    placed = promised(mapped_shards(source), layers, caches, layout)
    expected = {p.name: p for promises in placed.values() for p in promises}
    for name in sorted(expected.keys() ^ held.keys()):
        problems.append(f"{name} is in only one of folder and source")
    for name, promise in expected.items():
        if name in held:
            made, found = promise.make(), held[name]
            if made.dtype != found.dtype or not torch.equal(_bytes(made), _bytes(found)):
                problems.append(f"{name} differs from that of the source")
    if problems:
        raise UnitifyError(*(FolderDamaged(path=str(folder), problem=p) for p in problems))
    return len(held)


def _tensors_of_onnx(folder: Path, source: Path | None) -> int:
    if source is not None:
        choices = "nothing: a graph of ONNX was compared with its source by outputs"
        raise UnitifyError(UnknownOption(option="--source", value=str(source), choices=choices))
    check_package("onnx", "counting the tensors of ONNX")
    import onnx

    return len(onnx.load(folder / ONNX_FILE, load_external_data=False).graph.initializer)


def _row(kind: type[Row], row: Mapping[str, Any]) -> Row:
    return kind(**{field.name: row[field.name] for field in fields(kind)})


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _contents(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / CONTENTS).read_text("utf-8"))
    except FileNotFoundError:
        raise _damage(folder, f"it has no {CONTENTS}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damage(folder, f"{CONTENTS} is not JSON ({error})") from None
    is_ours = isinstance(document, dict) and document.get("format") == FORMAT
    hashes = document.get("sha256") if is_ours else None
    if not (isinstance(hashes, dict) and all(isinstance(h, str) for h in hashes.values())):
        raise _damage(folder, f"{CONTENTS} has not the format {FORMAT}")
    found: dict[str, Any] = document
    return found


def _damaged(folder: Path, hashes: Mapping[str, str]) -> Iterator[str]:
    for name, digest in hashes.items():
        if Path(name).name != name:
            yield f"{name} is outside the folder"
        elif not (folder / name).is_file() or sha256(folder / name) != digest:
            yield f"{name} is missing or has changed"
    for path in sorted(folder.iterdir()):
        if path.name != CONTENTS and path.name not in hashes:
            yield f"{path.name} was added later"


def _damage(folder: Path, problem: str) -> UnitifyError:
    return UnitifyError(FolderDamaged(path=str(folder), problem=problem))
