"""A forward pass without gradients, over the original's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from benchmarks.models import FAMILIES, Size, build
from benchmarks.training import WAYS, transformed
from benchmarks.turns import ratios

INFERENCE = ("everywhere", "everywhere, compiled", "fp8, codes", "fp8, simulated", "torchao, int8")


def _call_of(run: Callable[..., Any], batch: Mapping[str, Any]) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            run(**batch)

    return call


def _int8(model: nn.Module) -> nn.Module | None:
    """torchao's dynamic quantization; its FP8 asks for a GPU."""
    if find_spec("torchao") is None:
        return None
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made = copy.deepcopy(model)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    return made


def inference(size: Size) -> Iterator[list[str]]:
    """A row a family, a column each of ``INFERENCE``. What is compiled is over the compiled model.

    Codes are those of ``to_inference``; a CPU decodes them for each matmul.
    """
    for family in FAMILIES:
        model, batch = build(family, size)
        model.eval()
        everywhere = transformed(model, batch)
        ways = {
            "original": model,
            "everywhere": everywhere,
            "fp8, codes": transformed(model, batch, **WAYS["fp8"]).to_inference(),
            "fp8, simulated": transformed(model, batch, **WAYS["fp8, simulated"]),
        }
        if (theirs := _int8(model)) is not None:
            ways["torchao, int8"] = theirs
        found = ratios({name: _call_of(m, batch) for name, m in ways.items()})
        torch._dynamo.reset()
        both = {"original": model, "everywhere, compiled": everywhere}
        found |= ratios({name: _call_of(torch.compile(m), batch) for name, m in both.items()})
        yield [family, *(f"{found[n]:.2f}" if n in found else "-" for n in INFERENCE)]
