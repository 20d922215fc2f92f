"""Reads a folder as its runtimes do, where no reader here can, for the comparison with its source.

Every layer's weight is decoded, and the input of its matmul is rounded at the scale of the folder.
The layers of ModelOpt are decoded here: no runtime of them runs on a CPU. The others are decoded
by compressed-tensors itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unitify.capture.inputs import Inputs
from unitify.checkpoint.files import mapped_weights
from unitify.checkpoint.pretrained import quiet, read_config
from unitify.formats.blocks import in_blocks
from unitify.formats.table import E4M3, FORMATS, NVFP4, quantize
from unitify.runtime.scaled_mm import decode
from unitify.serve.experts import stacked
from unitify.serve.reopened import Reader, outputs_of

#: Rounds the input of a layer.
_Rounding = Callable[[Tensor], Tensor]
#: Takes the tensors of a layer by the ends of their names; gives its weight, and that rounding.
_Decoding = Callable[[Mapping[str, Tensor]], tuple[Tensor, _Rounding]]

_SCALE, _WEIGHT = "weight_scale", "weight"


def in_modelopt(model: nn.Module, folder: Path) -> Reader:
    """A ``folder`` in the layout of ModelOpt, in the class of ``model``."""
    return _decoded(model, folder, _of_modelopt)


def in_compressed_tensors(model: nn.Module, folder: Path) -> Reader:
    """A ``folder`` in a layout of compressed-tensors, decoded by it, in the class of ``model``."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    config = QuantizationConfig.model_validate(read_config(folder)["quantization_config"])
    (scheme,) = config.config_groups.values()
    compressor: Any = BaseCompressor.get_value_from_registry(scheme.format)

    def decoding(tensors: Mapping[str, Tensor]) -> tuple[Tensor, _Rounding]:
        layer = nn.Module()
        for name, tensor in tensors.items():
            layer.register_buffer(name, tensor)
        layer.quantization_status = QuantizationStatus.COMPRESSED

        def rounds(x: Tensor) -> Tensor:
            rounded: Tensor = forward_quantize(layer, x, "input", scheme.input_activations)
            return rounded.to(x.dtype)

        return compressor.decompress(dict(tensors), scheme)["weight"], rounds

    return _decoded(model, folder, decoding)


def _decoded(model: nn.Module, folder: Path, decoding: _Decoding) -> Reader:
    import transformers

    weights: dict[str, Tensor] = {}
    roundings: dict[str, _Rounding] = {}
    for layer, tensors in _by_layer(mapped_weights(folder)).items():
        if _SCALE in tensors:
            weight, roundings[layer] = decoding(tensors)
            tensors = {_WEIGHT: weight, **({"bias": tensors["bias"]} if "bias" in tensors else {})}
        weights.update({f"{layer}.{name}".lstrip("."): tensor for name, tensor in tensors.items()})
    kind: Any = type(model)
    with quiet(transformers):
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        del config.quantization_config
        opened = kind.from_pretrained(None, config=config, state_dict=weights).eval()
    inputs = _Rounded(_by_memory(opened, roundings))

    def read(call: Inputs) -> list[Tensor]:
        with inputs:
            return outputs_of(opened, call)

    return read


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer, by the ends of their names."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        found.setdefault(layer, {})[end] = tensor
    return found


def _by_memory(model: nn.Module, roundings: Mapping[str, _Rounding]) -> dict[int, _Rounding]:
    """The rounding of the inputs of each layer, by the memory of the weight in the model."""
    names = {f"{layer}.{_WEIGHT}": rounds for layer, rounds in roundings.items()}
    for name, (first, *_) in stacked(model).items():
        if first in roundings:
            names[name] = roundings[first]
    held = dict(model.named_parameters())
    return {held[n].untyped_storage().data_ptr(): r for n, r in names.items() if n in held}


class _Rounded(TorchFunctionMode):
    """A context in which what is multiplied by a layer's weight is rounded before."""

    def __init__(self, roundings: Mapping[int, _Rounding]) -> None:
        super().__init__()
        self.roundings = roundings

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if len(args) > 1 and all(isinstance(a, Tensor) for a in args[:2]):
            rounds = self.roundings.get(args[1].untyped_storage().data_ptr())
            if rounds is not None and args[0].is_floating_point():
                args = rounds(args[0]), *args[1:]
        return func(*args, **(kwargs or {}))


def _of_modelopt(tensors: Mapping[str, Tensor]) -> tuple[Tensor, _Rounding]:
    codes, scale, input = (tensors[name] for name in ("weight", "weight_scale", "input_scale"))
    outer = tensors.get("weight_scale_2")
    format = E4M3 if outer is None else NVFP4

    def rounds(x: Tensor) -> Tensor:
        return (quantize(x.float() / input, format) * input).to(x.dtype)

    if outer is None:
        return decode(codes, torch.float32, 0) * scale, rounds
    values = FORMATS["e2m1"].values().float()
    signed = torch.cat([values, -values])
    numbers = signed[torch.stack([codes & 15, codes >> 4], -1).long()].flatten(-2)
    blocks = in_blocks(numbers, NVFP4.size, -1) * decode(scale, torch.float32, 0).unsqueeze(-1)
    return blocks.flatten(-2) * outer, rounds
