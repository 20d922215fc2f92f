"""Opens a written folder with its own reader, and compares the outputs with those of the source.

Loading without an error proves nothing: readers may silently read codes as numbers, or ignore
scales. So the outputs are compared.
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

#: The least signal to noise of a folder in decibels, without one in the recipe. A missing or wrong
#: scale leaves less than four.
LEAST = 6.0


def check_reader() -> None:
    """Raises ``UnitifyError`` (U005) where the reader of these folders is not installed."""
    if importlib.util.find_spec("compressed_tensors") is None:
        purpose = "writing and reading checkpoints for runtimes"
        raise UnitifyError(PackageMissing(package="compressed-tensors", purpose=purpose))


def reopened(folder: Path, model: nn.Module, calls: Iterable[Inputs], least: float) -> float:
    """Signal to noise of the outputs of ``folder``, relative to those of ``model``, in decibels.

    Raises ``UnitifyError`` (U615) where it is below ``least``, or the reader fails.
    """
    import transformers

    try:
        # compressed-tensors prints progress bars.
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
        problem = f"the outputs of its reader have {found:.1f} dB of signal to noise, not {least:g}"
        raise UnitifyError(ReaderDiffers(path=str(folder), problem=problem))
    return found


def _numbers(output: Any) -> Iterator[Tensor]:
    for value in pytree.tree_leaves(output):
        if isinstance(value, Tensor) and value.is_floating_point():
            yield value.double()
