"""The folder that ``unitify convert`` writes, and ``load``, which reads it back.

    model.safetensors   the module's weights: true ones, or the codes of its casts; a tied tensor
                        once
    plan.json           scales (log2), recipe, versions, SHA-256 of all that decides the function
    report.json         the report
    huggingface/        config and tokenizer of a Hugging Face model

The config is in a separate folder, because a scheme's weights do not fit the model it describes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from unitify.capture.inputs import check_usable
from unitify.checkpoint.codes import Coded, coded_weights, encoded
from unitify.checkpoint.converted import (
    FORMAT,
    HUGGINGFACE,
    PLAN,
    REPORT,
    WEIGHTS,
    Converted,
    damaged,
    digest_of_plan,
    read,
)
from unitify.checkpoint.drawn_calls import drawn_calls, sizes_by_name
from unitify.checkpoint.new_folder import Folder, new_folder
from unitify.checkpoint.pretrained import from_config
from unitify.checkpoint.rebuild import rebuild
from unitify.checkpoint.state_dict import ties_in
from unitify.diagnostics import UnitifyError, UnknownOption
from unitify.module.unit_scaled import UnitScaledModule


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

    Raises ``UnitifyError``: U001 for something that is no path; U607 where a hash differs; U301,
    U302 or U603 where plan or weights do not fit the model; U002 where the folder does not describe
    its inputs.
    """
    if not isinstance(path, str | os.PathLike):
        choices = "the paths of folders that unitify convert wrote"
        raise UnitifyError(UnknownOption(option="path", value=repr(path), choices=choices))
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
    module.about = replace(module.about, scales=found.scales)
    return module


def skeleton(found: Converted, model: nn.Module | None) -> nn.Module:
    """``model``, or the one of the folder's config.

    Raises ``UnitifyError``: U607 where there is none; U001 for something that is no module.
    """
    if model is not None:
        check_usable(model)
        return model
    if found.huggingface is None:
        raise damaged(found.path, "it describes no model: pass one")
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
    document["sha256"][PLAN] = digest_of_plan(document)
    folder.write(PLAN, document)
    folder.write(REPORT, report)


def write_weights(
    path: Path, state_dict: Mapping[str, Tensor], coded: Mapping[str, Coded] | None = None
) -> dict[str, Coded]:
    """Write a file of weights. Returns those that were written as codes.

    safetensors holds no tensor twice, so tied names are in the header.
    """
    tied = ties_in(state_dict)
    # Copies, because tensors that overlap in memory (views of one buffer) are separate here.
    tensors = {
        name: tensor.detach().clone().contiguous()
        for name, tensor in state_dict.items()
        if name not in tied
    }
    met = {name: how for name, how in (coded or {}).items() if name in tensors}
    metadata = {"format": "pt", "tied": json.dumps(tied)}
    save_file(encoded(tensors, met), path, metadata=metadata)
    return met
