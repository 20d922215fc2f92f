"""Reads state dicts from files and folders. No code in them runs.

Takes a ``.safetensors`` or a ``.pt`` file, shards with their index, or a folder of
``torch.distributed.checkpoint``; gives names and tensors. A pickle is read only by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unitify.checkpoint.distributed import CONTENTS, read_distributed
from unitify.checkpoint.nests import state_dicts_in
from unitify.checkpoint.state_dict import StateDict
from unitify.diagnostics import (
    AdapterAlone,
    CheckpointUnreadable,
    UnitifyError,
    UnsafeCheckpoint,
)

_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}
_INDEX = ".index.json"
#: The config of an adapter in a folder of PEFT, which has no model.
_ADAPTER = "adapter_config.json"


def read_state_dicts(path: Path) -> dict[str, StateDict]:
    """Every state dict of a checkpoint, on the CPU, by the entry that holds it ("": the whole).

    Raises ``UnitifyError``: U601 for a missing or broken file, and for one without a state dict;
    U602 for a file with code; U611 for the folder of an adapter.
    """
    if not path.exists():
        raise _unreadable(path, "there is no such file")
    check_no_adapter(path)
    if (path / CONTENTS).is_file():
        return state_dicts_in(read_distributed(path), path)
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(_INDEX):
        return {"": _read_shards(path)}
    if path.suffix == ".safetensors":
        return {"": _read_safetensors(path)}
    if path.suffix in _PICKLED:
        return state_dicts_in(_read_pickled(path), path)
    raise _unreadable(path, f"the suffix {path.suffix!r} is not one of a checkpoint")


def check_no_adapter(folder: Path) -> None:
    """Raises ``UnitifyError`` (U611) for the folder of an adapter, which contains no model."""
    config = folder / _ADAPTER
    if not config.is_file():
        return
    try:
        base = str(json.loads(config.read_text("utf-8")).get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        base = "its base model"
    raise UnitifyError(AdapterAlone(path=str(folder), base=base))


def weight_files(path: Path) -> list[Path]:
    """The files of weights of a checkpoint, in order of their names."""
    if path.is_file() and not path.name.endswith(_INDEX):
        return [path]
    folder = path if path.is_dir() else path.parent
    patterns = ("*.safetensors", "*.distcp", *(f"*{suffix}" for suffix in sorted(_PICKLED)))
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def _read_folder(folder: Path) -> dict[str, StateDict]:
    index, file = _found(folder)
    return {"": _read_shards(index)} if index is not None else read_state_dicts(file)


def _found(folder: Path) -> tuple[Path | None, Path]:
    """The index and the folder; without an index, None and the only file of weights."""
    indices = sorted(folder.glob(f"*{_INDEX}"), key=lambda p: ".safetensors" not in p.name)
    if indices:
        return indices[0], folder
    files = weight_files(folder)
    safe = [file for file in files if file.suffix == ".safetensors"]
    if len(safe or files) != 1:
        problem = f"it holds {len(files)} files of weights and no index; name the one to read"
        raise _unreadable(folder, problem)
    return None, (safe or files)[0]


def mapped_shards(folder: Path) -> dict[str, StateDict]:
    """The tensors of a folder by file, memory-mapped: they are read when they are used.

    Raises ``UnitifyError`` like ``read_state_dicts``.
    """
    check_no_adapter(folder)
    index, file = _found(folder)
    if index is None:
        return {file.name: read_state_dicts(file)[""]}
    placed, files = _placed(index)
    read = {name: read_state_dicts(index.with_name(name))[""] for name in files}
    _check_whole(index, placed, read.values())
    return read


def mapped_weights(path: Path) -> dict[str, Any]:
    """The tensors of a folder, or of a file with one state dict, memory-mapped.

    Raises ``UnitifyError`` like ``read_state_dicts``.
    """
    shards = mapped_shards(path) if path.is_dir() else read_state_dicts(path)
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _placed(index: Path) -> tuple[dict[str, str], list[str]]:
    """Name → its file, and the files, which must be beside the index."""
    try:
        placed = json.loads(index.read_text("utf-8"))["weight_map"]
        files = sorted(set(placed.values()))
        named = [Path(file).name for file in files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(index, f"not an index of shards ({_first_line(error)})") from None
    if named != files:
        raise _unreadable(index, "it names a file outside its folder")
    return placed, files


def _read_shards(index: Path) -> dict[str, Any]:
    placed, files = _placed(index)
    read = [read_state_dicts(index.with_name(file))[""] for file in files]
    _check_whole(index, placed, read)
    return {name: tensor for shard in read for name, tensor in shard.items()}


def _check_whole(index: Path, placed: Mapping[str, str], read: Iterable[StateDict]) -> None:
    if lost := sorted(placed.keys() - {name for shard in read for name in shard}):
        raise _unreadable(index, f"no shard holds {lost[0]}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, f"not a whole safetensors file ({_first_line(error)})") from None


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except Exception as error:  # The unpickler may raise anything for a broken file.
        if refused := _refused(path, str(error)):
            raise UnitifyError(UnsafeCheckpoint(path=str(path), problem=refused)) from None
        raise _unreadable(path, f"not a whole state dict ({_first_line(error)})") from None


def _is_archive(path: Path) -> bool:
    """Is it a zip archive, as torch writes since 1.6, whose tensors can be mapped?"""
    return zipfile.is_zipfile(path)


def _refused(path: Path, message: str) -> str:
    """The name that torch refused to unpickle; "" where the file is only broken."""
    for line in message.splitlines():
        if "TorchScript" in line:
            return "a TorchScript archive"
        if "GLOBAL" in line or "Unsupported class" in line or "Trying to" in line:
            return line.strip().removeprefix("WeightsUnpickler error: ").split(" was not an")[0]
        if "Unsupported operand" in line and path.read_bytes()[:1] == b"\x80":
            return "a pickle not from torch.save"
    return ""


def _unreadable(path: Path, problem: str) -> UnitifyError:
    return UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:200] if lines else type(error).__name__
