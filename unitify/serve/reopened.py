"""A written folder opened by its own reader, and what came out compared with the source.

Loading without a complaint proves nothing: readers take codes for numbers, or scales for weights
that they do not know, in silence. So the outputs are compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.inputs import Inputs
from unitify.checkpoint.pretrained import quiet
from unitify.diagnostics import PackageMissing, ReaderDiffers, UnitifyError
from unitify.formats.signal_to_noise import decibels

#: Decibels below which a folder is refused where the recipe asks for none. A scale that a reader
#: does not find, or takes for another, leaves less than four.
LEAST = 6.0


def check_reader() -> None:
    """Raises ``UnitifyError`` (U005) where the reader of such folders is not installed."""
    if importlib.util.find_spec("compressed_tensors") is None:
        purpose = "writing and reading checkpoints for runtimes"
        raise UnitifyError(PackageMissing(package="compressed-tensors", purpose=purpose))


def reopened(folder: Path, model: nn.Module, calls: Iterable[Inputs], least: float) -> float:
    """Signal to noise of the outputs of ``folder`` against those of ``model``, in decibels.

    Raises ``UnitifyError`` (U615) where it is below ``least``, or the reader fails.
    """
    import transformers

    try:
        # compressed-tensors draws bars of its own.
        with quiet(transformers), contextlib.redirect_stderr(io.StringIO()):
            opened: Any = type(model).from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
            signal = noise = 0.0
            for args, kwargs in calls:
                with torch.no_grad():
                    ours, theirs = (
                        list(_numbers(m(*args, **kwargs))) for m in (model, opened.eval())
                    )
                for one, other in zip(ours, theirs, strict=True):
                    signal += float(one.square().sum())
                    noise += float((other - one).square().sum())
    except Exception as error:
        lines = str(error).splitlines() or [""]
        problem = f"its reader fails with {type(error).__name__}: {lines[0]}"
        raise UnitifyError(ReaderDiffers(path=str(folder), problem=problem)) from error
    found = decibels(noise / signal) if math.isfinite(noise) and signal else -math.inf
    if found < least:
        problem = f"what its reader computes has {found:.1f} dB of signal to noise, not {least:g}"
        raise UnitifyError(ReaderDiffers(path=str(folder), problem=problem))
    return found


def _numbers(output: Any) -> Iterator[Tensor]:
    for value in pytree.tree_leaves(output):
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value.double()
