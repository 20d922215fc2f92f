"""From a converted folder back to its original: model, weights, files.

Takes ``Converted``; gives the original, or compares it with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unitify.checkpoint.converted import WEIGHTS, Converted, damaged
from unitify.checkpoint.folder import skeleton, write_weights
from unitify.checkpoint.new_folder import new_folder
from unitify.checkpoint.state_dict import check_fitting
from unitify.diagnostics import FolderDamaged, NoOriginal, UnitifyError, WeightsCast
from unitify.module.fingerprint import KEY


def true_model(found: Converted, model: nn.Module | None = None) -> nn.Module:
    """The original model with its true weights, loaded into ``model``, as for ``load``.

    Weights that are codes are decoded.

    Raises ``UnitifyError``: U603 or U607; U705 for the model of a scheme.
    """
    true = true_weights(found)
    built = skeleton(found, model)
    check_fitting(built, true, same_types=True)
    built.load_state_dict(true, strict=False)
    return built


def true_weights(found: Converted) -> dict[str, Tensor]:
    """The weights of a folder at true scale, with codes decoded.

    Raises ``UnitifyError`` (U705) for the model of a scheme.
    """
    if found.scheme:
        raise UnitifyError(NoOriginal(path=str(found.path)))
    scales, made = found.plan.parameters, dict[int, Tensor]()
    for name, tensor in found.weights.items():
        # A tied tensor stays tied.
        if id(tensor) not in made:
            scale = scales[name].fwd if name in scales else 1.0
            if scale != 1.0 and not (tensor.is_floating_point() and tensor.itemsize > 1):
                raise damaged(found.path, f"{name} is {tensor.dtype}, which has no scale")
            made[id(tensor)] = tensor * scale if scale != 1.0 else tensor
    return {name: made[id(tensor)] for name, tensor in found.weights.items() if name != KEY}


def check_source(found: Converted, source: Mapping[str, Tensor]) -> None:
    """Check that the weights of a folder are bitwise those of ``source``, or their codes.

    Raises ``UnitifyError`` (U607) with every tensor that differs, or that only one of them has.
    """
    true = true_weights(found)
    # A checkpoint has a tied tensor under one of its names.
    shared = {id(true[name]) for name in true.keys() & source.keys()}
    alone = sorted(n for n in true.keys() ^ source.keys() if id(true.get(n)) not in shared)
    problems = [f"{name} is in only one of folder and source" for name in alone]
    for name in sorted(true.keys() & source.keys()):
        given, how = source[name], found.codes.get(name)
        is_alike = (given.dtype, given.shape) == (true[name].dtype, true[name].shape)
        if is_alike and how is not None:
            given = how.weight(how.codes(given))
        if not (is_alike and torch.equal(given, true[name])):
            problems.append(f"{name} differs from that of the source")
    if problems:
        raise UnitifyError(*(FolderDamaged(path=str(found.path), problem=p) for p in problems))


def write_original(found: Converted, path: Path) -> None:
    """Write the original checkpoint of ``found`` to the new folder ``path``.

    Its tensors, its config and its tokenizer are bitwise the original's. Raises ``UnitifyError``:
    U616 where weights are codes; U705 for the model of a scheme; U605 and U606 like ``write``.
    """
    true = true_weights(found)
    if found.codes:
        raise UnitifyError(WeightsCast(path=str(found.path), count=len(found.codes)))

    with new_folder(path) as folder:
        write_weights(folder.partial / WEIGHTS, true)
        folder.copy(sorted(found.huggingface.iterdir()) if found.huggingface else ())
