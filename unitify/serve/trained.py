"""``export``: from a transformed module, as it is now, to a folder that runtimes load.

The codes and scales of the folder are those with which the module multiplies: what is trained is
what is served. For rollouts, write such a folder at any step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unitify.capture.inputs import written_inputs
from unitify.capture.state import modes_kept
from unitify.checkpoint.new_folder import check_absent
from unitify.checkpoint.state_dict import ties_in
from unitify.diagnostics import NotFolded, UnitifyError
from unitify.module.assembly import parts_in
from unitify.module.unit_scaled import UnitScaledModule
from unitify.rulebook.rule_table import load_rules
from unitify.serve.cached import cached
from unitify.serve.experts import as_stored
from unitify.serve.served import served
from unitify.serve.writing import Export, FoldedModel, check_packages, layout_of, write_folder

_FILE = "model.safetensors"


def export(
    module: UnitScaledModule,
    output: str | os.PathLike[str],
    format: str = "compressed-tensors",
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    companions: Iterable[str | os.PathLike[str]] = (),
    rules: Iterable[Any] = (),
    verify: bool = True,
) -> Export:
    """Write a transformed Hugging Face model, as it is now, to the new folder ``output``.

    ``format``: "compressed-tensors", "fp8-dynamic", "fp8-block" or "modelopt", as for ``unitify
    convert``. ``state_dict``: the whole weights, where the module's own are distributed.
    ``companions``: files to copy, such as those of a tokenizer. ``rules``: those passed to
    ``transform``. ``verify``: open the folder with its reader, and compare its outputs with the
    module's.

    Raises ``UnitifyError``: U614 for a module without a recipe or config, and for casts that do not
    fold (layers that runtimes fuse share scales only in a recipe with ``joint = true``); U615 for a
    folder whose reader gives other outputs; U605 where ``output`` exists.
    """
    path = Path(output)
    check_absent(path)
    recipe = module.recipe if isinstance(module, UnitScaledModule) else None
    config = getattr(module, "config", None)
    if recipe is None or config is None or not hasattr(config, "to_dict") or module.scheme:
        problem = "it is no transformed Hugging Face model with a recipe and its own weights"
        raise UnitifyError(NotFolded(value=type(module).__name__, problem=problem))
    name = layout_of(format, recipe)
    check_packages(name)
    table, parts = load_rules(rules), parts_in(module)
    given = module.state_dict() if state_dict is None else state_dict
    if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in given.values()):
        problem = "its weights are distributed: pass state_dict, gathered from all processes"
        raise UnitifyError(NotFolded(value=type(module).__name__, problem=problem))
    tied = ties_in(given)
    original = parts[0].capture.model
    own = {name: tensor.detach() for name, tensor in given.items() if name not in tied}
    weights = as_stored(original, own)
    folded = FoldedModel(
        name, recipe, module, original, {_FILE: weights}, served(original, parts, recipe, table),
        cached(parts, table), config.to_dict(), tuple(map(Path, companions)),
    )  # fmt: skip
    with modes_kept(module):
        module.eval()
        calls = [written_inputs(original)] if verify else []
        return write_folder(path, folded, calls)
