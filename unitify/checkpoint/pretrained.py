"""Models from local Hugging Face folders: ``config.json`` names the class, the weights lie beside.

Nothing is downloaded and no code of the folder runs. ``transformers`` is imported only here,
and only when asked for.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from unitify.checkpoint.state_dict import check_finite
from unitify.diagnostics import (
    CheckpointUnreadable,
    KeysDiffer,
    PackageMissing,
    UnitifyError,
    UnsafeCheckpoint,
)

#: Files that belong to a model beside its weights.
_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "*vocab*", "merges.txt", "*.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "preprocessor_config.json",
    "processor_config.json", "modules.json", "sentence_bert_config.json",
)  # fmt: skip


def read_pretrained(folder: Path) -> nn.Module:
    """The model of a folder with its weights, in eval mode as transformers hands it out.

    Raises ``UnitifyError``: U005 without transformers, U601 and U602 for a folder that cannot be
    read, U603 where weights are missing or left over, U204 for weights that are not finite.
    """
    model_class, transformers = _model_class(folder)
    try:
        with _quiet(transformers):
            model, loading = model_class.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the loading info, and refused below
            )
    except pickle.UnpicklingError as error:
        problem = str(error).splitlines()[0]
        raise UnitifyError(UnsafeCheckpoint(path=str(folder), problem=problem)) from None
    except Exception as error:
        raise _unreadable(folder, f"{type(error).__name__}: {_first_line(error)}") from error
    problems = [
        f"{kind.removesuffix('_keys')}: {_named(loading[kind])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if loading.get(kind)
    ]
    if problems:
        raise UnitifyError(KeysDiffer(where=str(folder), problem="; ".join(problems)))
    check_finite(model)
    return _as_module(model)


def from_config(folder: Path) -> nn.Module:
    """The model of a folder with fresh weights, in eval mode: its ``config.json`` is enough.

    Raises ``UnitifyError`` (U005, U601).
    """
    model_class, transformers = _model_class(folder)
    try:
        with _quiet(transformers):
            config = model_class.config_class.from_pretrained(folder, local_files_only=True)
            return _as_module(model_class(config).eval())
    except Exception as error:
        raise _unreadable(folder, f"{type(error).__name__}: {_first_line(error)}") from error


def companions(folder: Path) -> list[Path]:
    """The config and tokenizer files of a folder, in order of their names."""
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold weights, in order of their names."""
    patterns = ("*.safetensors", "*.bin")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _model_class(folder: Path) -> tuple[Any, Any]:
    """The class that ``config.architectures`` names, and the transformers package."""
    config = folder / "config.json"
    try:
        stated = json.loads(config.read_text("utf-8"))
    except FileNotFoundError:
        raise _unreadable(folder, "there is no config.json in it") from None
    except (OSError, ValueError) as error:
        raise _unreadable(config, f"not JSON ({_first_line(error)})") from None
    try:
        import transformers
    except ImportError:
        purpose = f"reading the Hugging Face folder {folder}"
        raise UnitifyError(PackageMissing(package="transformers", purpose=purpose)) from None
    names = stated.get("architectures") if isinstance(stated, dict) else None
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise _unreadable(config, "it names no architecture")
    found = getattr(transformers, names[0], None)
    base = transformers.PreTrainedModel
    if not (isinstance(found, type) and issubclass(found, base)):
        problem = f"transformers {transformers.__version__} has no model {names[0]}"
        own = "; code that a folder brings along is never run" if "auto_map" in stated else ""
        raise _unreadable(config, problem + own)
    return found, transformers


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no warnings of transformers: what matters is in our own findings."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def _named(keys: Iterable[Any]) -> str:
    """Up to three keys, each a name or (name, its shape, the model's)."""
    names = sorted(key if isinstance(key, str) else str(key[0]) for key in keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _as_module(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def _unreadable(path: Path, problem: str) -> UnitifyError:
    return UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else ""
