"""Experts that a model holds as one tensor: the linear layers that checkpoints hold in its place.

transformers stacks the matrices of all experts when it reads a checkpoint, and takes them apart
when it writes one. Runtimes read the matrices, so casts of the tensor fold into their scales.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_WEIGHT = ".weight"


def as_stored(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` of a Hugging Face model, as ``save_pretrained`` writes them."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # Before version 5 models held what checkpoints hold.
        return dict(weights)
    stored: dict[str, Tensor] = revert_weight_conversion(model, dict(weights))  # type: ignore[arg-type]
    return stored


def stacked(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Parameters that a checkpoint holds as weights of several linear layers: name → layers."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() < 3:
            continue
        stored = as_stored(model, {name: torch.empty(parameter.shape, device="meta")})
        if all(key.endswith(_WEIGHT) and held.dim() == 2 for key, held in stored.items()):
            found[name] = tuple(key.removesuffix(_WEIGHT) for key in stored)
    return found
