"""Opens a written folder with its own reader, and compares the outputs with those of the source.

Loading without an error proves nothing: readers may silently read codes as numbers, or ignore
scales. So the outputs are compared.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from unitify.capture.inputs import Inputs
from unitify.checkpoint.pretrained import quiet
from unitify.diagnostics import ReaderDiffers, UnitifyError
from unitify.formats.signal_to_noise import decibels

#: The least signal to noise of a folder in decibels, without one in the recipe. A missing or wrong
#: scale leaves less than four.
LEAST = 6.0


#: Takes a call; gives the numbers that the reader of a folder computes.
Reader = Callable[[Inputs], Iterable[Tensor]]


def in_transformers(model: nn.Module, folder: Path) -> Reader:
    """``folder``, opened by the class of ``model``."""
    import transformers

    # compressed-tensors prints progress bars.
    with quiet(transformers), contextlib.redirect_stderr(io.StringIO()):
        opened: Any = type(model).from_pretrained(folder, local_files_only=True)  # type: ignore[attr-defined]
    return partial(outputs_of, opened.eval())


def outputs_of(model: nn.Module, call: Inputs) -> list[Tensor]:
    """The numbers that ``model`` returns, without gradients."""
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        output = model(*call[0], **call[1])
    return [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


def reopened(
    folder: Path,
    model: nn.Module,
    calls: Iterable[Inputs],
    least: float,
    opened: Callable[[Path], Reader],
) -> float:
    """Signal to noise of the outputs of ``folder``, relative to those of ``model``, in decibels.

    ``opened``: opens the folder. Raises ``UnitifyError`` (U615) where the ratio is below ``least``,
    or the reader fails.
    """
    try:
        reader = opened(folder)
        signal = noise = 0.0
        for call in calls:
            ours, theirs = _floating(outputs_of(model, call)), _floating(reader(call))
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


def _floating(output: Iterable[Tensor]) -> list[Tensor]:
    return [value.double() for value in output if value.is_floating_point()]
