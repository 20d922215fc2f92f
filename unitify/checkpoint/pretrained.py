"""Models from local Hugging Face folders: ``config.json`` names the class; weights are beside it.

Nothing is downloaded, and no code of the folder runs. ``transformers`` is imported on demand.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unitify.checkpoint.filling import NOTHING, Allowed, adapted, differs
from unitify.checkpoint.state_dict import Fit, check_finite
from unitify.diagnostics import (
    CheckpointUnreadable,
    Diagnostic,
    PackageMissing,
    UnitifyError,
    UnsafeCheckpoint,
)

CONFIG = "config.json"
#: The kinds of keys in the loading info of ``from_pretrained``.
_KINDS = ("missing", "unexpected", "mismatched")

#: Files of a model other than its weights.
_COMPANIONS = (
    CONFIG, "generation_config.json", "tokenizer*", "*vocab*", "merges.txt", "*.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "preprocessor_config.json",
    "processor_config.json", "modules.json", "sentence_bert_config.json",
)  # fmt: skip


def read_pretrained(
    folder: Path, allowed: Allowed = NOTHING
) -> tuple[nn.Module, tuple[Diagnostic, ...]]:
    """The model of a folder with its weights, in eval mode like that of transformers; and notes.

    Raises ``UnitifyError``: U005 without transformers; U601 and U602 for a folder that cannot be
    read; U603 where weights are missing or unexpected; U204 for weights that are not finite.
    """
    model_class, transformers = _model_class(folder)
    try:
        with quiet(transformers):
            model, loading = model_class.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # The loading info has them; they are refused below.
            )
    except pickle.UnpicklingError as error:
        problem = str(error).splitlines()[0]
        raise UnitifyError(UnsafeCheckpoint(path=str(folder), problem=problem)) from None
    except Exception as error:
        raise _unreadable(folder, f"{type(error).__name__}: {_first_line(error)}") from error
    names = {kind: sorted(map(_name, loading.get(f"{kind}_keys") or ())) for kind in _KINDS}
    kept = allowed.missing_of(names["missing"])
    left_out = allowed.unexpected_of(names["unexpected"])
    found = Fit(
        tuple(name for name in names["missing"] if name not in kept),
        tuple(name for name in names["unexpected"] if name not in left_out),
        tuple(names["mismatched"]),
    )
    if found.problem:
        raise UnitifyError(differs(found, str(folder)))
    check_finite(model)
    return _as_module(model), adapted(str(folder), kept=kept, left_out=left_out)


def from_config(folder: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """The model of a folder with new weights of the types of ``weights``, in eval mode.

    Raises ``UnitifyError`` (U005, U601).
    """
    model_class, transformers = _model_class(folder)
    try:
        with quiet(transformers):
            config = model_class.config_class.from_pretrained(folder, local_files_only=True)
            dtypes = (w.dtype for w in weights.values() if w.is_floating_point())
            # The choice of ``from_pretrained``.
            dtype = config.dtype or next(dtypes, None)
            model = _as_module(model_class._from_config(config, dtype=dtype))
    except Exception as error:
        raise _unreadable(folder, f"{type(error).__name__}: {_first_line(error)}") from error
    # transformers keeps some tensors in float32 in a model of any type.
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in weights:
            tensor.data = tensor.data.to(weights[name].dtype)
    return model.eval()


def companions(folder: Path) -> list[Path]:
    """The config and tokenizer files of a folder, in order of their names."""
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def _model_class(folder: Path) -> tuple[Any, Any]:
    """The class that ``config.architectures`` names, and the transformers package."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise _unreadable(folder, "it has no config.json") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, f"not JSON ({_first_line(error)})") from None
    try:
        import transformers
    except ImportError:
        purpose = f"reading the Hugging Face folder {folder}"
        raise UnitifyError(PackageMissing(package="transformers", purpose=purpose)) from None
    names = config.get("architectures") if isinstance(config, dict) else None
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise _unreadable(path, "it names no architecture")
    found = getattr(transformers, names[0], None)
    base = transformers.PreTrainedModel
    if not (isinstance(found, type) and issubclass(found, base)):
        problem = f"transformers {transformers.__version__} has no model {names[0]}"
        own = "; code in a folder is never run" if "auto_map" in config else ""
        raise _unreadable(path, problem + own)
    return found, transformers


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """A context without progress bars and warnings of transformers; we report what matters."""
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


def _name(key: Any) -> str:
    """The name in a key of the loading info: a name, or (name, its shape, the model's)."""
    return key if isinstance(key, str) else str(key[0])


def _as_module(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def _unreadable(path: Path, problem: str) -> UnitifyError:
    return UnitifyError(CheckpointUnreadable(path=str(path), problem=problem))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else ""
