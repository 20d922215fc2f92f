"""Reads folders of ``torch.distributed.checkpoint`` in one process. No code in them runs.

torch unpickles their list of contents without a check. This file admits only the classes of that
list. Each piece of a tensor is an archive of its own; other contents are not read.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from unitify.checkpoint.archives import read_archive
from unitify.checkpoint.pickles import NeedsCodeError, check_pickle
from unitify.documents import MalformedError, inside, malformed, open_file

CONTENTS = ".metadata"

#: The classes of the list of contents. Types of torch are allowed, too.
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "TensorStorageMetadata",
        "BytesStorageMetadata", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}  # fmt: skip


def read_distributed(folder: Path) -> dict[str, Any]:
    """The tensors of the folder in nested dicts, as they were saved.

    Raises ``MalformedError`` and ``OSError``.
    """
    contents = _contents(folder)
    pieces = _Pieces(folder, contents)
    nested: dict[str, Any] = {}
    for name, held in contents.state_dict_metadata.items():
        if not isinstance(held, TensorStorageMetadata):
            continue
        with malformed(f"its tensor {name!r} cannot be read"):
            *above, last = (contents.planner_data or {}).get(name, (name,))
            inner = nested
            for step in above:
                inner = inner.setdefault(step, {})
            inner[last] = _tensor(pieces, name, held)
    return nested


def _tensor(pieces: _Pieces, name: str, held: TensorStorageMetadata) -> Tensor:
    """A tensor, put together. Its pieces are read before the memory of the whole is reserved."""
    read = [(chunk, pieces.read(name, chunk)) for chunk in held.chunks]
    if sum(piece.numel() for _, piece in read) != math.prod(held.size):
        raise MalformedError("its pieces are not the whole")
    made = torch.empty(held.size, dtype=held.properties.dtype)
    is_filled = torch.zeros(held.size, dtype=torch.bool)
    for chunk, piece in read:
        place = tuple(
            slice(start, start + size)
            for start, size in zip(chunk.offsets, chunk.sizes, strict=True)
        )
        if made[place].shape != piece.shape or made.dtype != piece.dtype:
            raise MalformedError("a piece has another shape or type")
        made[place], is_filled[place] = piece, True
    if not is_filled.all():
        raise MalformedError("its pieces are not the whole")
    return made


class _Pieces:
    """The pieces of tensors in a folder. Together they are no larger than its files."""

    def __init__(self, folder: Path, contents: Metadata) -> None:
        self.folder, self.contents = folder, contents
        self.left = sum(file.stat().st_size for file in folder.glob("*.distcp"))

    def read(self, name: str, chunk: ChunkStorageMetadata) -> Tensor:
        """One piece of the tensor ``name``."""
        info = self.contents.storage_data[MetadataIndex(name, chunk.offsets)]
        if getattr(info, "transform_descriptors", None):
            raise MalformedError("it is compressed")
        with open_file(inside(self.folder, info.relative_path)) as file:
            file.seek(info.offset)
            data = file.read(min(info.length, self.left))
        # A piece that is read twice leaves too little for the others.
        self.left -= len(data)
        made = read_archive(io.BytesIO(data))
        if not isinstance(made, Tensor):
            raise MalformedError("a piece is not a tensor")
        return made.detach()


def _contents(folder: Path) -> Metadata:
    with open_file(inside(folder, CONTENTS)) as file:
        check_pickle(file, lambda name: _is_allowed(*name.split(" ", 1)))
        file.seek(0)
        with malformed("its list of contents cannot be read"):
            contents = _Unpickler(file).load()
    if isinstance(contents, Metadata):
        fields = vars(contents)
        tables = [fields.get(name) for name in ("state_dict_metadata", "storage_data")]
        if all(isinstance(table, Mapping) for table in tables):
            return contents
    raise MalformedError("its list of contents is not one")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (is_type or _is_allowed(module, name)):
            raise NeedsCodeError(f"{module}.{name}")
        return super().find_class(module, name)


def _is_allowed(module: str, name: str = "") -> bool:
    return name in _ALLOWED.get(module, ())
