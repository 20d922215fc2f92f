"""What ``torch.compile`` has compiled of a model runs eagerly while the model is looked at.

Dynamo would compile what observes them, and give up after a few recompilations, in the middle.
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
