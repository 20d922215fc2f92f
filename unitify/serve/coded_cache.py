"""A cache of transformers that holds keys and values as codes of eight bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unitify.formats.powers import exponent_of
from unitify.formats.table import FORMATS
from unitify.module.submodules import MakesCasts
from unitify.runtime.scaled_mm import decode, encode
from unitify.serve.cached import Cached


class CodedCache(DynamicCache, MakesCasts):  # type: ignore[misc]
    """Keys and values [batch, heads, positions, width] of each layer, a byte an element.

    What comes in is encoded once, at the layer's constant scales, and saturates. What goes out is
    decoded. Layers, sliding windows and beams are those of ``DynamicCache``.
    """

    def __init__(self, config: Any, layers: Mapping[int, Cached]) -> None:
        super().__init__(config=config)
        self.scales = dict(layers)
        self.casts = frozenset(each.operation for each in layers.values())
        self._seen = self._out_of_range = 0

    @property
    def clipped(self) -> float:
        """The share of the elements that came in out of range, and were kept as the largest."""
        return self._out_of_range / self._seen if self._seen else 0.0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep what a layer has made; returns all that it keeps."""
        kept = self.scales.get(layer_idx)
        if kept is None:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        format, dtype = FORMATS[kept.format], key_states.dtype
        assert format.dtype is not None
        exponents = exponent_of(kept.key), exponent_of(kept.value)
        codes: list[Tensor] = []
        for given, exponent in zip((key_states, value_states), exponents, strict=True):
            self._seen += given.numel()
            self._out_of_range += int((given.abs() > format.largest * 2.0**exponent).sum())
            # Not every device moves elements of eight bits of which it knows no arithmetic.
            codes.append(encode(given, format, exponent).view(torch.uint8))
        held = super().update(codes[0], codes[1], layer_idx, *args, **kwargs)
        keys, values = (
            decode(x.view(format.dtype), dtype, e) for x, e in zip(held, exponents, strict=True)
        )
        return keys, values
