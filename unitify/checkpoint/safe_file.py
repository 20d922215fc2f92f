"""Reads safetensors files: the one place that opens them.

The library checks offsets and sizes. The header is checked here first, because the library takes
the last of two entries with one name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from unitify.documents import MalformedError, malformed, open_file, parse_json

#: The most bytes of a header that the library reads.
_HEADER_BYTES = 100_000_000


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, memory-mapped, and its metadata.

    Raises ``MalformedError`` and ``OSError``.
    """
    metadata = _header(path).get("__metadata__", {})
    what = "not a whole safetensors file"
    with malformed(what), safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, metadata


def _header(path: Path) -> dict[str, Any]:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        count = int.from_bytes(file.read(8), "little")
        if size < 8 or count > min(size - 8, _HEADER_BYTES):
            raise MalformedError("not a whole safetensors file (its header is too short)")
        header = parse_json(file.read(count))
    if not isinstance(header, dict):
        raise MalformedError("not a safetensors file (its header is not an object)")
    metadata = header.get("__metadata__", {})
    texts = metadata.values() if isinstance(metadata, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise MalformedError("not a safetensors file (its metadata is not text)")
    return header
