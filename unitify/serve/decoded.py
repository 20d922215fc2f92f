"""Reads a folder in the layout of ModelOpt as its runtimes do, for the comparison with its source.

No runtime of this layout runs on a CPU, so the tensors of the files are decoded here: every weight
is its codes times its scales, and the input of such a layer is rounded at the input's scale.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unitify.checkpoint.files import mapped_weights
from unitify.formats.blocks import in_blocks
from unitify.formats.table import E4M3, FORMATS, NVFP4, Format, quantize
from unitify.runtime.scaled_mm import decode


def decoded_model(folder: Path, model: nn.Module) -> nn.Module:
    """A copy of ``model`` with the weights of ``folder``, which rounds the inputs of its layers."""
    tensors = mapped_weights(folder)
    made: nn.Module = copy.deepcopy(model)
    inputs = [name for name in tensors if name.endswith(".input_scale")]
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.input_scale" in inputs and layer != name:
            own = made.get_submodule(layer).get_parameter("weight")
            weights[name] = _weight(tensors, layer).to(own.dtype)
        elif not name.endswith("_scale") and not name.endswith("_scale_2"):
            weights[name] = tensor
    made.load_state_dict(weights, strict=False, assign=True)
    made.requires_grad_(False)
    for name in inputs:
        layer = name.removesuffix(".input_scale")
        format = NVFP4 if f"{layer}.weight_scale_2" in tensors else E4M3
        made.get_submodule(layer).register_forward_pre_hook(_rounds(format, tensors[name]))
    return made


def _weight(tensors: Mapping[str, Tensor], layer: str) -> Tensor:
    codes, scale = (tensors[f"{layer}.{ending}"] for ending in ("weight", "weight_scale"))
    outer = tensors.get(f"{layer}.weight_scale_2")
    if outer is None:
        return decode(codes, torch.float32, 0) * scale
    values = FORMATS["e2m1"].values().float()
    signed = torch.cat([values, -values])
    numbers = signed[torch.stack([codes & 15, codes >> 4], -1).long()].flatten(-2)
    blocks = in_blocks(numbers, NVFP4.size, -1) * decode(scale, torch.float32, 0).unsqueeze(-1)
    return blocks.flatten(-2) * outer


def _rounds(format: Format, scale: Tensor) -> Any:
    """A hook that rounds the input of a layer to ``format``, at its outer ``scale``."""

    def before(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first, *rest = args
        return (quantize(first.float() / scale, format) * scale).to(first.dtype), *rest

    return before
