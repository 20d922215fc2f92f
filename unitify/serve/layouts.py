"""Layouts of a layer in a checkpoint: the tensors of its weight, and their config.

Most are those of compressed-tensors, which vLLM, SGLang and transformers read; there, a scale of
one number has the shape [1], because loaders reject []. Those of ModelOpt are for vLLM, SGLang and
TensorRT-LLM. Scales are powers of two where the format allows it, because runtimes may hold them in
bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unitify.formats.blocks import in_blocks
from unitify.formats.rounding import octave
from unitify.formats.table import E4M3, FORMATS, MXFP4, MXFP8, NVFP4, BlockFormat, quantize
from unitify.runtime.scaled_mm import encode
from unitify.serve.served import Served

#: Rows and columns of a tile with one scale, which readers of "fp8-block" require.
_TILE = 128
#: The least exponent of a scale: that of normal numbers in bfloat16 and float32.
_LEAST = -126


@dataclass(frozen=True)
class Layout:
    """One layout.

    ``formats``: the formats of operands that it supports. ``compression``: its name in the config
    of its family. ``config``: quantization_config of weights and inputs. ``made``: weight in
    float32 [N, K] and its row → tensors by the end of their names after the layer's path.
    ``multiple``: a divisor of a layer's width. ``dtype``: the type in which the rest of the model
    must run, because readers decode to it; "" for that of the source. ``family``: the files beside
    the weights, and their reader.
    """

    formats: frozenset[str]
    compression: str
    config: Mapping[str, Mapping[str, Any]]
    made: Callable[[Tensor, Served], dict[str, Tensor]]
    multiple: int = 1
    dtype: str = ""
    family: str = "compressed-tensors"


def _args(bits: int, strategy: str, dynamic: Any = False, **more: Any) -> dict[str, Any]:
    given = {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True}
    return {**given, "dynamic": dynamic, **more}


def _one(value: float) -> Tensor:
    return torch.full((1,), value, dtype=torch.float32)


def _static(weight: Tensor, row: Served) -> dict[str, Tensor]:
    codes = encode(weight / row.weight, E4M3)
    return {
        "weight": codes,
        "weight_scale": _one(row.weight),
        "input_scale": _one(row.input),
    }


def _room(largest: Tensor) -> Tensor:
    """The least power of two by which to divide a magnitude to bring it into the range of E4M3."""
    ratio = largest / E4M3.largest
    below = octave(ratio, _LEAST)
    return torch.where(below < ratio, below * 2, below)


def _rows(weight: Tensor, row: Served) -> dict[str, Tensor]:
    scale = _room(weight.abs().amax(1, keepdim=True))
    return {"weight": encode(weight / scale, E4M3), "weight_scale": scale}


def _tiles(weight: Tensor, row: Served) -> dict[str, Tensor]:
    tiles = in_blocks(in_blocks(weight, _TILE, 1), _TILE, 0)
    scale = _room(tiles.abs().amax((-1, -3)).mT).contiguous()
    spread = scale.repeat_interleave(_TILE, 0)[: weight.shape[0]]
    spread = spread.repeat_interleave(_TILE, 1)[:, : weight.shape[1]]
    return {"weight": encode(weight / spread, E4M3), "weight_scale": scale}


def _blocks(weight: Tensor, format: BlockFormat) -> tuple[Tensor, Tensor]:
    """Numbers in the elements' format [N, K], and scales [N, K / size]."""
    blocks = in_blocks(weight, format.size, -1)
    scales = format.scales(blocks.abs().amax(-1))
    divided = blocks / torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    return quantize(divided, format.element).flatten(-2), scales


def _packed(numbers: Tensor) -> Tensor:
    """Two codes of E2M1 in each byte, the first in the low half."""
    values = FORMATS["e2m1"].values().float()
    codes = torch.bucketize(numbers.abs(), values) + numbers.signbit() * len(values)
    low, high = codes.to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    packed: Tensor = low | (high << 4)
    return packed


def _exponents(scales: Tensor) -> Tensor:
    """Codes of E8M0."""
    assert MXFP8.scale.dtype is not None
    return scales.to(MXFP8.scale.dtype).view(torch.uint8)


def _nvfp4(weight: Tensor, row: Served) -> dict[str, Tensor]:
    numbers, scales = _blocks(weight / row.weight, NVFP4)
    return {
        "weight_packed": _packed(numbers),
        "weight_scale": encode(scales, E4M3),
        # Runtimes take the reciprocals of these two.
        "weight_global_scale": _one(1 / row.weight),
        "input_global_scale": _one(1 / row.input),
    }


def _mxfp4(weight: Tensor, row: Served) -> dict[str, Tensor]:
    numbers, scales = _blocks(weight, MXFP4)
    return {"weight_packed": _packed(numbers), "weight_scale": _exponents(scales)}


def _mxfp8(weight: Tensor, row: Served) -> dict[str, Tensor]:
    numbers, scales = _blocks(weight, MXFP8)
    return {"weight": encode(numbers, E4M3), "weight_scale": _exponents(scales)}


def _scalars(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, with the shape [] for scales of one number."""
    return {name: t.reshape(()) if t.shape == (1,) else t for name, t in tensors.items()}


def _modelopt_fp8(weight: Tensor, row: Served) -> dict[str, Tensor]:
    return _scalars(_static(weight, row))


def _modelopt_nvfp4(weight: Tensor, row: Served) -> dict[str, Tensor]:
    made = _nvfp4(weight, row)
    return _scalars(
        {
            "weight": made["weight_packed"],
            "weight_scale": made["weight_scale"],
            "weight_scale_2": _one(row.weight),
            "input_scale": _one(row.input),
        }
    )


def _mx(bits: int) -> dict[str, Any]:
    weights = _args(bits, "group", group_size=32, scale_dtype="torch.uint8", zp_dtype="torch.uint8")
    return {"weights": weights, "input_activations": {**weights, "dynamic": True}}


_FP4 = _args(
    4, "tensor_group", group_size=16,
    scale_dtype="torch.float8_e4m3fn", zp_dtype="torch.float8_e4m3fn",
)  # fmt: skip
_E4M3 = frozenset({"e4m3"})
PER_TENSOR = _args(8, "tensor")
PLAIN8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_PLAIN4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}

#: Layouts by name. "fp8" and those in blocks have the recipe's scales. The others compute scales of
#: inputs at run time, and those of weights from the weights.
LAYOUTS: Mapping[str, Layout] = {
    "fp8": Layout(
        _E4M3, "float-quantized",
        {"weights": PER_TENSOR, "input_activations": PER_TENSOR}, _static,
    ),
    "fp8-dynamic": Layout(
        _E4M3, "float-quantized",
        {"weights": _args(8, "channel"), "input_activations": _args(8, "token", True)}, _rows,
    ),
    "fp8-block": Layout(
        _E4M3, "float-quantized",
        {
            "weights": _args(8, "block", block_structure=[_TILE, _TILE]),
            "input_activations": _args(8, "group", True, group_size=_TILE),
        },
        _tiles, _TILE,
    ),
    "nvfp4": Layout(
        frozenset({"nvfp4"}), "nvfp4-pack-quantized",
        {"weights": _FP4, "input_activations": {**_FP4, "dynamic": "local"}},
        _nvfp4, 16, "bfloat16",
    ),
    "mxfp4": Layout(frozenset({"mxfp4"}), "mxfp4-pack-quantized", _mx(4), _mxfp4, 32, "bfloat16"),
    "mxfp8": Layout(frozenset({"mxfp8"}), "mxfp8-quantized", _mx(8), _mxfp8, 32, "bfloat16"),
    "modelopt-fp8": Layout(
        _E4M3, "FP8", {"weights": PLAIN8, "input_activations": PLAIN8}, _modelopt_fp8,
        family="modelopt",
    ),
    "modelopt-nvfp4": Layout(
        frozenset({"nvfp4"}), "NVFP4", {"weights": _PLAIN4, "input_activations": _PLAIN4},
        _modelopt_nvfp4, 16, family="modelopt",
    ),
}  # fmt: skip
