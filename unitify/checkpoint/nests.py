"""Finds the state dicts in the file of a training script: beside an optimizer's, or nested."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unitify.checkpoint.state_dict import StateDict
from unitify.diagnostics import CheckpointUnreadable, UnitifyError

#: Entries of a state dict that need not be tensors, and the depth to which dicts are searched.
_EXTRA = "_extra_state"
_DEEPEST = 3
#: State dicts of one file; each one is tried.
_MOST = 64


def state_dicts_in(loaded: Any, path: Path) -> dict[str, StateDict]:
    """Every state dict in ``loaded``, by the entry that holds it; "" for ``loaded`` itself.

    Raises ``UnitifyError`` (U601) where there is none.
    """
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    if not isinstance(loaded, Mapping):
        problem = f"it holds a {type(loaded).__name__}, not a state dict"
        raise UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))
    found = {entry: _plain(held) for entry, held in _found(loaded, "", 0, set())}
    if len(found) > _MOST:
        problem = f"it holds {len(found)} state dicts; save the one that you want by itself"
        raise UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))
    if not found:
        name, value = next(
            ((n, v) for n, v in loaded.items() if not isinstance(v, Tensor)), ("", 0)
        )
        shown = repr(name[:200]) if isinstance(name, str) else f"of a {type(name).__name__}"
        problem = f"its entry {shown} is a {type(value).__name__}, not a tensor"
        raise UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))
    return found


def _found(
    value: Mapping[Any, Any], entry: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, StateDict]]:
    # One mapping may be there under many names, and in itself.
    if id(value) in seen:
        return
    seen.add(id(value))
    if _is_state_dict(value) or not (entry or value):
        yield entry, value
    elif depth < _DEEPEST:
        for name, inner in value.items():
            if isinstance(name, str) and isinstance(inner, Mapping):
                yield from _found(inner, f"{entry}.{name}" if entry else name, depth + 1, seen)


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(v, Tensor) for v in value.values()) and all(
        isinstance(name, str) and (isinstance(v, Tensor) or name.endswith(_EXTRA))
        for name, v in value.items()
    )


def _plain(given: StateDict) -> StateDict:
    """``given`` with tensors of torch's own class, and of its metadata the versions of modules."""
    made: dict[int, Tensor] = {}
    for value in given.values():
        if isinstance(value, Tensor):
            made[id(value)] = value.detach().as_subclass(Tensor)
    plain = OrderedDict((name, made.get(id(value), value)) for name, value in given.items())
    metadata = getattr(given, "_metadata", None)
    if isinstance(metadata, Mapping):
        versions = {
            path: {"version": held["version"]}
            for path, held in metadata.items()
            if isinstance(path, str) and isinstance(held, Mapping)
            if isinstance(held.get("version"), int)
        }
        plain._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
    return plain
