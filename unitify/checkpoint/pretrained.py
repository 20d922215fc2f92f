"""Models from local Hugging Face folders: ``config.json`` names the class; weights are beside it.

Nothing is downloaded, and no code of the folder runs. ``transformers`` is imported on demand.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unitify.checkpoint.budget import check_counts, check_size
from unitify.checkpoint.files import CONFIG, mapped_weights, unreadable
from unitify.checkpoint.filling import NOTHING, Allowed, adapted, differs
from unitify.checkpoint.state_dict import Fit, check_finite
from unitify.diagnostics import Diagnostic, UnitifyError, UnsafeCheckpoint, check_package
from unitify.documents import first_line, inside, read_json

#: Keys of a config that name an implementation, which may be a kernel of the Hub.
_IMPLEMENTATION = re.compile("implementation|kernel")
#: The kinds of keys in the loading info of ``from_pretrained``.
_KINDS = ("missing", "unexpected", "mismatched")

#: Files of a model other than its weights.
_COMPANIONS = (
    CONFIG, "generation_config.json", "tokenizer*", "*vocab*", "merges.txt", "*.model",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "preprocessor_config.json",
    "processor_config.json", "modules.json", "sentence_bert_config.json",
)  # fmt: skip


def read_pretrained(
    folder: Path, allowed: Allowed = NOTHING, weights: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, tuple[Diagnostic, ...]]:
    """The model of a folder with its weights, in eval mode like that of transformers; and notes.

    ``weights``: those of the folder, where they are read already.

    Raises ``UnitifyError``: U005 without transformers; U601 and U602 for a folder that cannot be
    read; U603 where weights are missing or unexpected; U204 for weights that are not finite.
    """
    model_class, transformers = _model_class(folder)
    weights = mapped_weights(folder) if weights is None else weights
    try:
        with quiet(transformers):
            config = _config(model_class, folder, weights)
            model, loading = model_class.from_pretrained(
                None,  # It reads no file: ``weights`` are all there is.
                config=config,
                state_dict=dict(weights),
                generation_config=_generation_config(transformers, folder),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # The loading info has them; they are refused below.
            )
            model.config.name_or_path = model.name_or_path = str(folder)
    except Exception as error:
        raise unreadable(folder, f"{type(error).__name__}: {first_line(error)}") from error
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
            config = _config(model_class, folder, weights)
            dtypes = (w.dtype for w in weights.values() if w.is_floating_point())
            # The choice of ``from_pretrained``.
            dtype = config.dtype or next(dtypes, None)
            model = _as_module(model_class._from_config(config, dtype=dtype))
    except Exception as error:
        raise unreadable(folder, f"{type(error).__name__}: {first_line(error)}") from error
    # transformers keeps some tensors in float32 in a model of any type.
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in weights:
            tensor.data = tensor.data.to(weights[name].dtype)
    return model.eval()


def companions(folder: Path) -> list[Path]:
    """The config and tokenizer files of a folder, in order of their names.

    Raises ``UnitifyError`` (U601) for a link that leads out of the folder.
    """
    found = {path for pattern in _COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    try:
        return [inside(folder, path.name) for path in sorted(found)]
    except ValueError as error:
        raise unreadable(folder, first_line(error)) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of ``config.json``.

    Raises ``UnitifyError``: U601 for a file that is no config; U602 for one that names code.
    """
    path = folder / CONFIG
    try:
        config = read_json(inside(folder, CONFIG), any_number=True)
        check_counts(config)
    except FileNotFoundError:
        raise unreadable(folder, "it has no config.json") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, first_line(error)) from None
    if not isinstance(config, dict):
        raise unreadable(path, "it is not an object")
    if kernel := next(_kernels(config), ""):
        problem, advice = f"the kernel {kernel!r}", "Remove it from config.json"
        raise UnitifyError(UnsafeCheckpoint(path=str(path), problem=problem, advice=advice))
    return config


def _kernels(config: Mapping[str, Any]) -> Iterator[str]:
    """Kernels of the Hub, which transformers would download and run."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _kernels(value)
        elif isinstance(value, str) and _IMPLEMENTATION.search(name) and "/" in value:
            yield value


def _config(model_class: Any, folder: Path, weights: Mapping[str, Tensor]) -> Any:
    """The config of a model whose size is that of its ``weights``."""
    config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    check_size(lambda: model_class(config), weights)
    return config


def _generation_config(transformers: Any, folder: Path) -> Any:
    """The generation settings, which may be in the config; None where there are none."""
    read = transformers.GenerationConfig.from_pretrained
    for name in ("generation_config.json", CONFIG):
        if (folder / name).is_file():
            inside(folder, name)
            with contextlib.suppress(OSError, TypeError):
                return read(folder, config_file_name=name, local_files_only=True)
    return None


def _model_class(folder: Path) -> tuple[Any, Any]:
    """The class that ``config.architectures`` names, and the transformers package."""
    config, path = read_config(folder), folder / CONFIG
    check_package("transformers", f"reading the Hugging Face folder {folder}")
    import transformers

    names = config.get("architectures")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        raise unreadable(path, "it names no architecture")
    try:
        found = getattr(transformers, names[0], None)
    except Exception:  # A name of a module that cannot be imported.
        found = None
    base = transformers.PreTrainedModel
    if isinstance(found, type) and issubclass(found, base) and found.config_class is not None:
        return found, transformers
    problem = f"transformers {transformers.__version__} has no model {names[0]}"
    if "auto_map" not in config:
        raise unreadable(path, problem)
    advice = "Pass your own factory for its model with --model package.module:factory"
    raise UnitifyError(UnsafeCheckpoint(path=str(path), problem=problem, advice=advice))


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
