"""Writes safetensors files tensor by tensor.

Takes tensors as promises: a name, a type, a shape, and a function that makes the tensor when it is
written. Only one of them is in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"
#: Types → their names in safetensors.
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Promise:
    """A tensor to write: its entry in the header, and the function that makes it."""

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


#: Takes the bytes written since its last call.
OnBytes = Callable[[int], None]


def write_shard(path: Path, promises: Sequence[Promise], on_bytes: OnBytes) -> str:
    """Write one file, and return its SHA-256. It has a temporary name until it is complete."""
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


def index(placed: Mapping[str, Sequence[Promise]]) -> dict[str, Any]:
    """The index of shards: tensor → file."""
    total = sum(promise.size for promises in placed.values() for promise in promises)
    names = {p.name: file for file, promises in placed.items() for p in promises}
    return {"metadata": {"total_size": total}, "weight_map": names}
