"""From a converted folder back to what it was made of: model, weights, files.

Takes ``Converted``; compares, or gives what it holds in the place of the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unitify.checkpoint.folder import WEIGHTS, Converted, skeleton, write_weights
from unitify.checkpoint.new_folder import new_folder
from unitify.checkpoint.state_dict import check_fitting
from unitify.diagnostics import FolderDamaged, NoOriginal, UnitifyError, WeightsCast
from unitify.module.fingerprint import KEY


def true_model(found: Converted, model: nn.Module | None = None) -> nn.Module:
    """The original model again, with its true weights. ``model`` as for ``load``; it is filled.

    Where casts left codes the weights are what these stand for.

    Raises ``UnitifyError`` (U603, U607), and U705 where a scheme made another model of it.
    """
    true = true_weights(found)
    built = skeleton(found, model)
    check_fitting(built, true, same_types=True)
    built.load_state_dict(true, strict=False)
    return built


def true_weights(found: Converted) -> dict[str, Tensor]:
    """The weights of a folder at true scale; codes have become what they stand for.

    Raises ``UnitifyError`` (U705) where a scheme made another model of it.
    """
    if found.scheme:
        raise UnitifyError(NoOriginal(path=str(found.path)))
    scales, made = found.plan.parameters, dict[int, Tensor]()
    for name, tensor in found.weights.items():
        # A tied tensor stays one.
        if id(tensor) not in made:
            made[id(tensor)] = tensor * scales[name].fwd if name in scales else tensor
    return {name: made[id(tensor)] for name, tensor in found.weights.items() if name != KEY}


def check_source(found: Converted, source: Mapping[str, Tensor]) -> None:
    """Is a folder of these weights, bit for bit, and codes those of them?

    Raises ``UnitifyError`` (U607) with every tensor that is not, or that only one of the two holds.
    """
    true = true_weights(found)
    # Checkpoints hold a tied tensor under one of its names.
    shared = {id(true[name]) for name in true.keys() & source.keys()}
    alone = sorted(n for n in true.keys() ^ source.keys() if id(true.get(n)) not in shared)
    problems = [f"{name} is in one of the two alone" for name in alone]
    for name in sorted(true.keys() & source.keys()):
        given, how = source[name], found.codes.get(name)
        given = how.weight(how.codes(given)) if how is not None else given
        if not (given.dtype == true[name].dtype and torch.equal(given, true[name])):
            problems.append(f"{name} is not what the source makes")
    if problems:
        raise UnitifyError(*(FolderDamaged(path=str(found.path), problem=p) for p in problems))


def write_original(found: Converted, path: Path) -> None:
    """Write the checkpoint that ``found`` was converted from to the new folder ``path``.

    Bit for bit: its tensors, its config and its tokenizer. Raises ``UnitifyError``: U616 where
    casts left codes of its weights, U705 where a scheme made another model, U605 and U606 as
    ``write``.
    """
    true = true_weights(found)
    if found.codes:
        raise UnitifyError(WeightsCast(path=str(found.path), count=len(found.codes)))

    with new_folder(path) as folder:
        write_weights(folder.partial / WEIGHTS, true)
        folder.copy(sorted(found.huggingface.iterdir()) if found.huggingface else ())
