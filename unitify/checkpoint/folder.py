"""The folder that ``unitify convert`` writes, and ``load``, which reads it back.

    model.safetensors   the module's weights: true ones, or the codes of its casts; a tied tensor
                        once
    plan.json           scales (log2), recipe, versions, SHA-256 of all that decides the function
    report.json         the report
    huggingface/        config and tokenizer of a Hugging Face model

The config is in a separate folder, because a scheme's weights do not fit the model it describes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unitify.capture.outline import Outline
from unitify.checkpoint.codes import Coded, coded_weights, decoded, encoded
from unitify.checkpoint.drawn_calls import drawn_calls, sizes_by_name
from unitify.checkpoint.new_folder import Folder, new_folder, sha256
from unitify.checkpoint.pretrained import from_config
from unitify.checkpoint.rebuild import rebuild
from unitify.diagnostics import (
    FolderDamaged,
    UnitifyError,
)
from unitify.module.unit_scaled import UnitScaledModule
from unitify.plan.scale_plan import ScalePlan
from unitify.recipe.cast import Cast
from unitify.recipe.choices import Choice
from unitify.reparametrization import Reparametrization

FORMAT = 5
WEIGHTS, PLAN, REPORT, HUGGINGFACE = (
    "model.safetensors", "plan.json", "report.json", "huggingface",
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """A converted folder, read and checked: its plan, weights, options and calls."""

    path: Path
    plan: ScalePlan
    weights: Mapping[str, Tensor]
    recipe: Mapping[str, Any] | None
    casts: tuple[Choice, ...] | None = None
    scheme: Mapping[str, Reparametrization] = field(default_factory=dict)
    calls: Sequence[Outline] = ()
    scales: str = ""
    codes: Mapping[str, Coded] = field(default_factory=dict)

    @property
    def huggingface(self) -> Path | None:
        """The folder with the Hugging Face config; None for other models."""
        folder = self.path / HUGGINGFACE
        return folder if folder.is_dir() else None


def write(
    path: Path,
    module: UnitScaledModule,
    report: Mapping[str, Any],
    *,
    versions: Mapping[str, str] | None = None,
    source: Mapping[str, Any] | None = None,
    companions: Iterable[Path] = (),
) -> None:
    """Write ``module`` to the new folder ``path``, completely or not at all.

    Raises ``UnitifyError``: U605 where it exists; U606 where it cannot be written.
    """
    with new_folder(path) as folder:
        _write_files(folder, module, report, versions or {}, source or {}, companions)


def read(path: Path) -> Converted:
    """Read a converted folder, and check every hash.

    Raises ``UnitifyError``: U607 where it changed since it was written; U301 for an invalid plan.
    """
    document = _read_plan(path)
    hashes = document.get("sha256")
    if document.get("format") != FORMAT or not isinstance(hashes, Mapping):
        found = document.get("format")
        problem = f"{PLAN} has the format {found}, and this version of unitify reads {FORMAT}"
        raise _damaged(path, problem)
    if hashes.get(PLAN) != _digest_of_plan(document):
        raise _damaged(path, f"{PLAN} has changed")
    for name, digest in hashes.items():
        if name != PLAN and (not (path / name).is_file() or sha256(path / name) != digest):
            raise _damaged(path, f"{name} is missing or has changed")
    codes = _codes(path, document.get("codes", {}))
    return Converted(
        path=path,
        plan=ScalePlan.from_json(document),
        weights=_read_weights(path / WEIGHTS, codes),
        codes=codes,
        recipe=document.get("recipe"),
        casts=_casts(path, document.get("casts")),
        scheme={
            part: Reparametrization.from_json(made)
            for part, made in document.get("scheme", {}).items()
        },
        calls=document["calls"],
        scales=document.get("source", {}).get("scales", ""),
    )


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    example_inputs: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    rules: Iterable[Any] = (),
) -> UnitScaledModule:
    """The module in a folder that ``unitify convert`` wrote.

    ``model``: a model of the converted class; its weights do not matter. A Hugging Face model needs
    none, because its config is in the folder. Without example inputs, they are drawn with the
    shapes of the conversion's.

    Raises ``UnitifyError``: U607 where a hash differs; U301, U302 or U603 where plan or weights do
    not fit the model; U002 where the folder does not describe its inputs.
    """
    found = read(Path(path))
    built = skeleton(found, model)
    (args, kwargs), *further = drawn_calls(found.calls, built, example_inputs, example_kwargs)
    module = rebuild(
        built,
        found.weights,
        found.plan,
        args,
        kwargs,
        batches=[own or named for own, named in further],
        dynamic_shapes=sizes_by_name(found.calls[0], built),
        recording_seconds=None,
        recipe=found.recipe,
        casts=found.casts,
        scheme=found.scheme,
        rules=rules,
    )
    module.scales = found.scales
    return module


def skeleton(found: Converted, model: nn.Module | None) -> nn.Module:
    """``model``, or the one of the folder's config.

    Raises ``UnitifyError`` (U607) where there is none.
    """
    if model is not None:
        return model
    if found.huggingface is None:
        raise _damaged(found.path, "it describes no model: pass one")
    return from_config(found.huggingface, found.weights)


def _write_files(
    folder: Folder,
    module: UnitScaledModule,
    report: Mapping[str, Any],
    versions: Mapping[str, str],
    source: Mapping[str, Any],
    companions: Iterable[Path],
) -> None:
    weights = folder.partial / WEIGHTS
    coded = write_weights(weights, module.state_dict(), coded_weights(module))
    folder.copy(companions, HUGGINGFACE)
    recipe = module.recipe.as_table() if module.recipe is not None else None
    document: dict[str, Any] = {"format": FORMAT, **module.plan.to_json(), "recipe": recipe}
    document["calls"] = next(iter(module.parts.values())).capture.calls
    if recipe is not None:
        document["casts"] = [asdict(choice) for choice in module.casts if choice.is_contraction]
    document["codes"] = {name: asdict(coded[name]) for name in sorted(coded)}
    if module.scheme:
        document["scheme"] = {part: made.to_json() for part, made in module.scheme.items()}
    document["versions"] = {**document["versions"], **versions}
    document["source"] = {**source, "scales": module.scales}
    document["sha256"] = folder.hashes()
    document["sha256"][PLAN] = _digest_of_plan(document)
    folder.write(PLAN, document)
    folder.write(REPORT, report)


def _digest_of_plan(document: Mapping[str, Any]) -> str:
    """The hash of the data in plan.json without the hash itself, independent of its layout."""
    hashes = {k: v for k, v in document["sha256"].items() if k != PLAN}
    text = json.dumps({**document, "sha256": hashes}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_weights(
    path: Path, state_dict: Mapping[str, Tensor], coded: Mapping[str, Coded] | None = None
) -> dict[str, Coded]:
    """Write a file of weights. Returns those that were written as codes.

    safetensors holds no tensor twice, so tied names are in the header.
    """
    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        # A copy, because tensors that overlap in memory (views of one buffer) are separate here.
        tensors[name] = tensor.detach().clone().contiguous()
    met = {name: how for name, how in (coded or {}).items() if name in tensors}
    metadata = {"format": "pt", "tied": json.dumps(tied)}
    save_file(encoded(tensors, met), path, metadata=metadata)
    return met


def _read_weights(path: Path, coded: Mapping[str, Coded]) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            weights = decoded(weights, coded)
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
            return {**weights, **{name: weights[of] for name, of in tied.items()}}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, str(error)) from error


def _codes(path: Path, rows: Any) -> dict[str, Coded]:
    try:
        return {name: Coded(**row).checked() for name, row in rows.items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _damaged(path, f"its codes are invalid ({error})") from None


def _casts(path: Path, rows: Any) -> tuple[Choice, ...] | None:
    try:
        if rows is None:
            return None
        return tuple(
            Choice(**{**row, "casts": tuple(_cast(cast) for cast in row["casts"])}) for row in rows
        )
    except (TypeError, KeyError) as error:
        raise _damaged(path, f"its casts are invalid ({error})") from None


def _cast(row: Mapping[str, Any]) -> Cast:
    return Cast(**{**row, "place": tuple(row["place"]), "mean": tuple(row["mean"])})


def _read_plan(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise _damaged(path, "there is no such folder")
    try:
        document = json.loads((path / PLAN).read_text("utf-8"))
    except FileNotFoundError:
        raise _damaged(path, f"it has no {PLAN}") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, f"{PLAN} is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise _damaged(path, f"{PLAN} is not an object")
    return document


def _damaged(path: Path, problem: str) -> UnitifyError:
    return UnitifyError(FolderDamaged(path=str(path), problem=problem))
