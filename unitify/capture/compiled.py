"""Runs the compiled parts of a model eagerly while the model is observed or recorded.

Otherwise Dynamo would compile the observing code, and give up after a few recompilations.
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn


def eagerly(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Inside, what was compiled of ``model`` runs its own code."""
    if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
        stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance
    return contextlib.nullcontext()
