"""safetensors files written tensor by tensor, whole or not at all, and the folder around them.

Takes what is to be written as promises: a name, a type, a shape, and a function that makes the
tensor when its turn comes. No more than one is in memory. A folder is made beside its place under a
name that says that it is partial; every file in it is renamed when it is whole, and the folder when
all are. What was written before an interruption is kept there, and can be gone on from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unitify.checkpoint.folder import sha256

INDEX = "model.safetensors.index.json"
_PROGRESS = "progress.json"
#: Types by the names that safetensors has for them.
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Promise:
    """A tensor to be written: what its header says, and how it is made."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


#: Told how many bytes have been written since the last time.
OnBytes = Callable[[int], None]


def write_shard(path: Path, promises: Sequence[Promise], on_bytes: OnBytes) -> str:
    """Write one file, and return its SHA-256. There is no file of this name until it is whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for promise in promises:
        ends = [offset, offset + promise.size]
        shape = list(promise.shape)
        header[promise.name] = {
            "dtype": _TYPES[promise.dtype], "shape": shape, "data_offsets": ends,
        }  # fmt: skip
        offset = ends[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        for piece in (struct.pack("<Q", len(text)), text):
            file.write(piece)
            digest.update(piece)
        for promise in promises:
            made = promise.make().detach().contiguous()
            assert (made.dtype, tuple(made.shape)) == (promise.dtype, promise.shape), promise.name
            held: Any = made.reshape(-1).view(torch.uint8).numpy()
            file.write(held)
            digest.update(held)
            on_bytes(promise.size)
        file.flush()
        os.fsync(file.fileno())
    os.rename(partial, path)
    return digest.hexdigest()


class Folder:
    """A folder in the making. ``request`` says what is being written, to know it again."""

    def __init__(self, path: Path, request: Mapping[str, Any], resume: bool) -> None:
        self.path = path.absolute()
        self.partial = self.path.with_name(f".{path.name}.partial")
        text = json.dumps(request, sort_keys=True)
        self.request = hashlib.sha256(text.encode()).hexdigest()
        self.done: dict[str, str] = self._begun() if resume else {}
        if not self.done:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
        self._note()

    def _begun(self) -> dict[str, str]:
        """Files of an interrupted run of the same request that are whole."""
        try:
            told = json.loads((self.partial / _PROGRESS).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(told, dict) or told.get("request") != self.request:
            return {}
        files: Mapping[str, str] = told.get("done", {})
        places = {name: self.partial / Path(name).name for name in files}
        return {
            name: digest
            for name, digest in files.items()
            if places[name].is_file() and sha256(places[name]) == digest
        }

    def _note(self) -> None:
        self.write(_PROGRESS, {"request": self.request, "done": self.done})

    def shard(self, name: str, promises: Sequence[Promise], on_bytes: OnBytes) -> None:
        """Write a file of weights, unless it is there."""
        if name in self.done:
            on_bytes(sum(promise.size for promise in promises))
            return
        self.done[name] = write_shard(self.partial / name, promises, on_bytes)
        self._note()

    def write(self, name: str, document: Any) -> None:
        """Write JSON, at once or not at all."""
        text = json.dumps(document, indent=1, sort_keys=name == INDEX) + "\n"
        partial = self.partial / f"{name}.partial"
        partial.write_text(text, "utf-8")
        os.rename(partial, self.partial / name)

    def copy(self, files: Iterable[Path]) -> None:
        """Copy files beside the weights."""
        for file in files:
            shutil.copyfile(file, self.partial / file.name)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every file that is there, those of weights as they were written."""
        files = sorted(p for p in self.partial.iterdir() if p.name != _PROGRESS)
        return {p.name: self.done.get(p.name) or sha256(p) for p in files}

    def drop(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def finish(self) -> None:
        """Give the folder its name."""
        (self.partial / _PROGRESS).unlink()
        os.rename(self.partial, self.path)


def index(placed: Mapping[str, Sequence[Promise]]) -> dict[str, Any]:
    """The index of shards: which file holds which tensor."""
    total = sum(promise.size for promises in placed.values() for promise in promises)
    names = {p.name: file for file, promises in placed.items() for p in promises}
    return {"metadata": {"total_size": total}, "weight_map": names}
