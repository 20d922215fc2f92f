"""State dicts from files, read without running anything that a file may hold.

Takes a ``.safetensors`` or a ``.pt`` file, gives names and tensors. A pickle is read by
``torch.load(weights_only=True)`` and never in any other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unitify.checkpoint.state_dict import check_finite, fitting
from unitify.diagnostics import CheckpointUnreadable, UnitifyError, UnsafeCheckpoint

_PICKLED = {".pt", ".pth", ".bin", ".ckpt"}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, on the CPU.

    Raises ``UnitifyError``: U601 for a file that is missing, truncated or no state dict, U602 for
    one that holds anything but tensors.
    """
    if not path.exists():
        raise _unreadable(path, "there is no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path)
    raise _unreadable(path, f"the suffix {path.suffix!r} is not one of a checkpoint")


def fill(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Give ``model`` the weights of a checkpoint, every one of them.

    Raises ``UnitifyError``: U603 where names, shapes or types differ, U204 for weights that are
    not finite.
    """
    model.load_state_dict(fitting(model, state_dict), strict=True)
    check_finite(model)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, f"not a whole safetensors file ({_first_line(error)})") from None


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything on its way through the unpickler
        if refused := _refused(path, str(error)):
            raise UnitifyError(UnsafeCheckpoint(path=str(path), problem=refused)) from None
        raise _unreadable(path, f"not a whole state dict ({_first_line(error)})") from None
    return _checked(path, loaded)


def _refused(path: Path, message: str) -> str:
    """What torch refused to unpickle; empty where the file is merely broken."""
    for line in message.splitlines():
        if "TorchScript" in line:
            return "a TorchScript archive"
        if "GLOBAL" in line or "Unsupported class" in line or "Trying to" in line:
            return line.strip().removeprefix("WeightsUnpickler error: ").split(" was not an")[0]
        if "Unsupported operand" in line and path.read_bytes()[:1] == b"\x80":
            return "a pickle that torch.save did not write"
    return ""


def _checked(path: Path, loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping):
        raise _unreadable(path, f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            inside = "; save that entry by itself" if isinstance(value, Mapping) else ""
            raise _unreadable(path, f"its entry {name!r} is a {kind}, not a tensor{inside}")
    return {str(name): value for name, value in loaded.items()}


def _unreadable(path: Path, problem: str) -> UnitifyError:
    return UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:200] if lines else type(error).__name__
