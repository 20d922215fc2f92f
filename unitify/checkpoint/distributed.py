"""Reads folders of ``torch.distributed.checkpoint`` in one process. No code in them runs.

torch unpickles their list of contents without a check. This file admits only the classes of that
list. Tensors are read with ``weights_only=True``; other contents of the folder are not read.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from unitify.diagnostics import CheckpointUnreadable, UnitifyError, UnsafeCheckpoint

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

    Raises ``UnitifyError``: U601 for a folder that cannot be read, U602 for one with pickled code.
    """
    contents = _contents(folder)
    tensors: dict[str, Any] = {
        name: torch.empty(metadata.size, dtype=metadata.properties.dtype)
        for name, metadata in contents.state_dict_metadata.items()
        if isinstance(metadata, TensorStorageMetadata)
    }
    try:
        load(tensors, storage_reader=_Reader(folder, contents), no_dist=True)
    except (Exception, CheckpointException) as error:  # A broken file may raise anything.
        problem = f"its tensors cannot be read ({type(error).__name__}: {error})"
        raise UnitifyError(
            CheckpointUnreadable(path=str(folder), problem=problem.splitlines()[0])
        ) from None
    nested: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *above, last = (contents.planner_data or {}).get(name, (name,))
        inner = nested
        for step in above:
            inner = inner.setdefault(step, {})
        inner[last] = tensor
    return nested


class _Reader(FileSystemReader):
    """torch's reader, with a list of contents that is already read."""

    def __init__(self, folder: Path, contents: Metadata) -> None:
        super().__init__(folder)
        self.contents = contents

    def read_metadata(self, *_args: Any, **_kwargs: Any) -> Metadata:
        return self.contents


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (is_type or name in _ALLOWED.get(module, ())):
            raise _RefusedError(f"{module}.{name}")
        return super().find_class(module, name)


class _RefusedError(Exception):
    """The list of contents names another class."""


def _contents(folder: Path) -> Metadata:
    path = folder / CONTENTS
    try:
        with path.open("rb") as file:
            contents = _Unpickler(file).load()
        assert isinstance(contents, Metadata)
    except _RefusedError as refused:
        raise UnitifyError(UnsafeCheckpoint(path=str(path), problem=str(refused))) from None
    except Exception as error:  # A broken file may raise anything.
        problem = f"its list of contents cannot be read ({type(error).__name__})"
        raise UnitifyError(CheckpointUnreadable(path=str(path), problem=problem)) from None
    contents.storage_meta = contents.storage_meta or StorageMeta()
    return contents
