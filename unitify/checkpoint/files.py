"""Reads state dicts from files and folders. No code in them runs, unless a user trusts it.

Takes a ``.safetensors`` or a ``.pt`` file, shards with their index, or a folder of
``torch.distributed.checkpoint``; gives names and tensors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unitify.checkpoint.archives import PICKLE, ZIP, read_archive
from unitify.checkpoint.distributed import CONTENTS, read_distributed
from unitify.checkpoint.nests import state_dicts_in
from unitify.checkpoint.pickles import NeedsCodeError
from unitify.checkpoint.safe_file import read_safetensors
from unitify.checkpoint.state_dict import StateDict
from unitify.diagnostics import (
    AdapterAlone,
    CheckpointUnreadable,
    UnitifyError,
    UnknownOption,
    UnsafeCheckpoint,
)
from unitify.documents import MalformedError, first_line, inside, open_file, read_json

_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_SAFE = ".safetensors"
_PROGRAM = ".pt2"
_INDEX = ".index.json"
#: The files of a Hugging Face folder, in the order in which transformers looks for them.
CONFIG = "config.json"
_HUGGINGFACE = tuple(
    f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", _INDEX)
)
#: The config of an adapter in a folder of PEFT, which has no model.
_ADAPTER = "adapter_config.json"
#: The starts of files that are often taken for another, and what these are.
_STARTS = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
_PICKLES = {ZIP: "an archive of torch.save", PICKLE: "a pickle"}


def read_state_dicts(path: Path, *, unsafe: bool = False) -> dict[str, StateDict]:
    """Every state dict of a checkpoint, on the CPU, by the entry that holds it ("": the whole).

    ``unsafe``: code in pickles runs.

    Raises ``UnitifyError``: U601 for a missing or broken file, and for one without a state dict;
    U602 for a file with code; U611 for the folder of an adapter.
    """
    if not os.path.exists(path):
        raise unreadable(path, "there is no such file")
    check_no_adapter(path)
    if (path / CONTENTS).exists():
        with _refused(path):
            read = read_distributed(path)
        return state_dicts_in(read, path)
    if path.is_dir():
        return _read_folder(path, unsafe)
    if path.name.endswith(_INDEX):
        return {"": _read_shards(path, unsafe)}
    if path.suffix == _SAFE:
        with _refused(path):
            _check_start(path, is_safe=True)
            return {"": read_safetensors(path)[0]}
    return state_dicts_in(read_pickled(path, unsafe=unsafe), path)


def read_pickled(path: Path, *, unsafe: bool = False) -> Any:
    """The object in a file of ``torch.save``. Raises ``UnitifyError`` like ``read_state_dicts``."""
    if path.suffix == _PROGRAM:
        raise _program(path)
    if path.suffix not in _PICKLED:
        raise unreadable(path, f"the suffix {path.suffix!r} is not one of a checkpoint")
    with _refused(path):
        _check_start(path)
        return read_archive(path, unsafe=unsafe)


def check_unsafe_load(checkpoint: Path, reason: str) -> None:
    """Check that a user may load the pickles of a checkpoint with the code in them.

    Raises ``UnitifyError`` (U001) without a reason, and where there is no pickle.
    """
    if not reason.strip():
        choices = "the reason why the file can be trusted, which plan.json will hold"
        raise UnitifyError(UnknownOption(option="unsafe_load", value=reason, choices=choices))
    files = weight_files(checkpoint) if os.path.exists(checkpoint) else []
    if not any(file.suffix in (*_PICKLED, _PROGRAM) for file in files):
        choices = f"nothing for {checkpoint}: only {', '.join(_PICKLED)} files hold code"
        raise UnitifyError(UnknownOption(option="unsafe_load", value=reason, choices=choices))


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """A context in which a file that cannot be read has the code of a checkpoint."""
    try:
        yield
    except NeedsCodeError as error:
        if "exported program" in str(error):
            raise _program(path) from None
        raise UnitifyError(UnsafeCheckpoint(path=str(path), problem=str(error))) from None
    except (MalformedError, OSError) as error:
        raise unreadable(path, first_line(error)) from None


def _check_start(path: Path, *, is_safe: bool = False) -> None:
    """Refuse a file that starts as one of another kind. ``is_safe``: it has to be safetensors."""
    with open_file(path) as file:
        head = file.read(64)
    # The length of a header of safetensors comes first, and may be any byte.
    starts = {} if head[8:9] == b"{" else {**_STARTS, **(_PICKLES if is_safe else {})}
    for start, kind in starts.items():
        if head.startswith(start):
            raise MalformedError(f"it is {kind}, and no {path.suffix} file")


def _program(path: Path) -> UnitifyError:
    advice = "Save torch.export.load(path).state_dict with safetensors and convert that"
    problem = "an exported program"
    return UnitifyError(UnsafeCheckpoint(path=str(path), problem=problem, advice=advice))


def check_no_adapter(folder: Path) -> None:
    """Raises ``UnitifyError`` (U611) for the folder of an adapter, which contains no model."""
    config = folder / _ADAPTER
    if not os.path.isfile(config):
        return
    try:
        base = str(read_json(config, any_number=True).get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        base = "its base model"
    raise UnitifyError(AdapterAlone(path=str(folder), base=base))


def weight_files(path: Path) -> list[Path]:
    """The files of weights of a checkpoint, in order of their names."""
    if path.is_file() and not path.name.endswith(_INDEX):
        return [path]
    folder = path if path.is_dir() else path.parent
    patterns = (f"*{_SAFE}", "*.distcp", *(f"*{suffix}" for suffix in _PICKLED))
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    return sorted(file for file in found if file.is_file())


def _read_folder(folder: Path, unsafe: bool) -> dict[str, StateDict]:
    index, file = _found(folder)
    if index is not None:
        return {"": _read_shards(index, unsafe)}
    return read_state_dicts(file, unsafe=unsafe)


def _found(folder: Path) -> tuple[Path | None, Path]:
    """The index and the folder; without an index, None and the only file of weights.

    A Hugging Face folder may have other files beside those that its model is read from.
    """
    if (folder / CONFIG).is_file():
        for name in _HUGGINGFACE:
            if (folder / name).is_file():
                found = _in(folder, name)
                return (found, folder) if name.endswith(_INDEX) else (None, found)
    indices = sorted(folder.glob(f"*{_INDEX}"), key=lambda p: _SAFE not in p.name)
    if indices:
        return _in(folder, indices[0].name), folder
    files = weight_files(folder)
    safe = [file for file in files if file.suffix == _SAFE]
    if len(safe or files) != 1:
        problem = f"it holds {len(files)} files of weights and no index; name the one to read"
        raise unreadable(folder, problem)
    return None, _in(folder, (safe or files)[0].name)


def mapped_shards(folder: Path) -> dict[str, StateDict]:
    """The tensors of a folder by file, memory-mapped: they are read when they are used.

    Raises ``UnitifyError`` like ``read_state_dicts``.
    """
    check_no_adapter(folder)
    index, file = _found(folder)
    if index is None:
        return {file.name: _shard(file, unsafe=False)}
    placed, files = _placed(index)
    read = {name: _shard(file, unsafe=False) for name, file in files.items()}
    _check_whole(index, placed, read)
    return read


def mapped_weights(path: Path) -> dict[str, Any]:
    """The tensors of a folder, or of a file with one state dict, memory-mapped.

    Raises ``UnitifyError`` like ``read_state_dicts``.
    """
    shards = mapped_shards(path) if path.is_dir() else read_state_dicts(path)
    return {name: tensor for shard in shards.values() for name, tensor in shard.items()}


def _placed(index: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """Name → its file, and the files, which must be beside the index."""
    with _refused(index):
        document = read_json(index, any_number=True)
        placed = document.get("weight_map") if isinstance(document, dict) else None
        if not (isinstance(placed, dict) and all(isinstance(v, str) for v in placed.values())):
            raise MalformedError("not an index of shards")
        if any("/" in name for name in placed.values()):
            raise MalformedError("it names a file outside its folder")
        return placed, {n: inside(index.parent, n) for n in sorted(set(placed.values()))}


def _read_shards(index: Path, unsafe: bool) -> dict[str, Any]:
    placed, files = _placed(index)
    read = {name: _shard(file, unsafe) for name, file in files.items()}
    _check_whole(index, placed, read)
    return {name: tensor for shard in read.values() for name, tensor in shard.items()}


def _shard(file: Path, unsafe: bool) -> StateDict:
    """The one state dict of a shard."""
    if not os.path.isfile(file) or file.name.endswith(_INDEX):
        raise unreadable(file, "there is no such shard")
    found = read_state_dicts(file, unsafe=unsafe)
    if "" not in found:
        raise unreadable(file, f"it is no shard: its state dict is in {next(iter(found))!r}")
    return found[""]


def _check_whole(index: Path, placed: Mapping[str, str], read: Mapping[str, Iterable[str]]) -> None:
    """Every tensor must be in the shard that the index names, and in no other."""
    held = {name: set(shard) for name, shard in read.items()}
    if lost := sorted(name for name, file in placed.items() if name not in held[file]):
        raise unreadable(index, f"no shard holds {lost[0]}")
    if sum(map(len, held.values())) > len(set[str]().union(*held.values())):
        raise unreadable(index, "two shards hold one tensor")


def _in(folder: Path, name: str) -> Path:
    """The file ``name`` of a folder, if no link leads out of it."""
    with _refused(folder):
        return inside(folder, name)


def unreadable(path: Path, problem: str) -> UnitifyError:
    """The error for a checkpoint that cannot be read (U601)."""
    return UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))
