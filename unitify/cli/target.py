"""The targets of ``check`` and ``report``: a factory, or a folder."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unitify.capture.source import Frame
from unitify.checkpoint.converted import PLAN
from unitify.checkpoint.folder import load
from unitify.checkpoint.pretrained import read_pretrained
from unitify.checkpoint.targets import build_model, import_target, input_batches
from unitify.diagnostics import CheckpointUnreadable, UnitifyError


@dataclass(frozen=True)
class Target:
    """A model, and how to call it.

    ``entry``: the source line of its factory. ``batches``: inputs of calls, of which the first is
    the example; without any, the inputs are inferred from the model. ``converted``: the folder, if
    it is one that ``unitify convert`` wrote.
    """

    model: nn.Module
    batches: tuple[Any, ...]
    entry: Frame | None = None
    converted: Path | None = None


def read_target(
    target: str,
    *,
    model: str | None = None,
    inputs: str | None = None,
    rules: Iterable[Any] = (),
) -> Target:
    """Build the model named ``target``.

    ``model``: the factory for a converted folder without a Hugging Face config. ``inputs``: a
    function that returns example inputs, as for ``unitify convert``.

    Raises ``UnitifyError``: U002 without inputs; U6xx for files that cannot be read.
    """
    batches = tuple(input_batches(inputs)) if inputs is not None else ()
    path = Path(target)
    if (path / PLAN).is_file():
        built = build_model(model) if model is not None else None
        loaded = load(path, built, batches[0] if batches else (), rules=rules)
        return Target(loaded, batches, Frame(str(path / PLAN), 1), path)
    if path.is_dir():
        return Target(read_pretrained(path)[0], batches, Frame(str(path / "config.json"), 1))
    if ":" not in target:
        problem = "there is no such folder; a factory has the form package.module:name"
        raise UnitifyError(CheckpointUnreadable(path=target, problem=problem))
    return Target(build_model(target), batches, _definition(target))


def _definition(target: str) -> Frame | None:
    """The line where the factory is defined."""
    function: Any = inspect.unwrap(import_target(target))
    code = getattr(function, "__code__", None)
    if code is not None:
        return Frame(code.co_filename, code.co_firstlineno)
    try:
        return Frame(inspect.getsourcefile(function) or "", inspect.getsourcelines(function)[1])
    except (TypeError, OSError):
        return None
