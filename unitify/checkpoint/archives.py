"""Reads what ``torch.save`` writes: the one place that calls ``torch.load``.

The archive and its pickles are checked first. Then torch reads them with ``weights_only=True``, so
that no code in them runs. Only a user who trusts a file loads it otherwise.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from unitify.checkpoint.pickles import NeedsCodeError, check_pickle
from unitify.documents import MalformedError, malformed, open_file

#: The first bytes of a zip archive, and the first byte of a pickle.
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
#: The first pickle in a file of torch before 1.6, and the number of pickles before its storages.
_MAGIC, _LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 5
#: The length of the end of an archive without a comment.
_END = 22
#: Bytes that tensors of a file may have beyond their storages, as expanded ones do.
_EXPANDED = 2**30


def read_archive(source: Path | IO[bytes], *, unsafe: bool = False) -> Any:
    """The object that was saved, on the CPU; tensors in a file are memory-mapped if they can be.

    ``unsafe``: code in the file runs. Raises ``MalformedError`` and ``OSError``.
    """
    if not isinstance(source, Path):
        return _loaded(source, source, unsafe)
    with open_file(source) as file:
        return _loaded(file, source, unsafe)


def _loaded(file: IO[bytes], source: Path | IO[bytes], unsafe: bool) -> Any:
    head = file.read(len(_MAGIC))
    is_zip = head.startswith(ZIP)
    file.seek(0)
    if is_zip:
        _check_zip(file, unsafe)
    elif head != _MAGIC:
        raise MalformedError("not a whole state dict (torch.save did not write it)")
    elif not unsafe:
        for _ in range(_LEGACY):
            check_pickle(file)
    file.seek(0)
    mapped = is_zip and isinstance(source, Path)
    try:
        made = torch.load(source, map_location="cpu", weights_only=not unsafe, mmap=mapped)
    except Exception as error:  # A broken file may raise anything.
        if not unsafe and (name := _refused(str(error))):
            raise NeedsCodeError(name) from None
        with malformed("not a whole state dict"):
            raise
    if not unsafe:
        _check_tensors(made)
    return made


def _check_zip(file: IO[bytes], unsafe: bool) -> None:
    """An archive as torch writes it: nothing is compressed, there twice, or beside the entries."""
    with malformed("not a whole state dict"):
        size = file.seek(0, 2)
        file.seek(-min(_END, size), 2)
        has_end = file.read(4) == b"PK\x05\x06"
        archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if not has_end or len(set(names)) < len(names):
        raise MalformedError("not an archive of torch.save (entries twice, or a comment)")
    if any(name.endswith("/archive_format") for name in names):
        raise NeedsCodeError("an exported program")
    if unsafe:
        return
    if any(name.endswith("/constants.pkl") for name in names):
        raise NeedsCodeError("a TorchScript archive")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise MalformedError("it is compressed, as torch.save never writes it")
    if sum(entry.file_size for entry in entries) > size:
        raise MalformedError("its entries are larger than the file")
    for name in names:
        if name.endswith(".pkl"):
            with malformed("not a whole state dict"), archive.open(name) as pickle:
                check_pickle(pickle)


def _refused(message: str) -> str:
    """The name that torch refused to unpickle; "" where the file is only broken."""
    for line in message.splitlines():
        if "TorchScript" in line:
            return "a TorchScript archive"
        if "GLOBAL" in line or "Unsupported class" in line or "Trying to" in line:
            return line.strip().removeprefix("WeightsUnpickler error: ").split(" was not an")[0]
    return ""


def _check_tensors(made: Any) -> None:
    """Tensors are dense, on the CPU, and hardly larger than their storages."""
    expanded = 0
    for tensor in _tensors(made):
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_quantized or tensor.is_nested:
            raise MalformedError("it has a tensor that is not dense")
        expanded += max(tensor.numel() * tensor.itemsize - tensor.untyped_storage().nbytes(), 0)
    if expanded > _EXPANDED:
        raise MalformedError(f"its tensors repeat their storages to {expanded} bytes more")


def _tensors(made: Any) -> Iterator[Tensor]:
    pending, seen = [made], set[int]()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value
