"""Checkpoints of FP8 codes: the numbers that codes and scales stand for, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import refusal
from safetensors.torch import save_file
from torch import Tensor, nn

from unitify.checkpoint.files import read_state_dicts
from unitify.checkpoint.filling import Allowed, fill


def fp8(scale: Callable[[Tensor], Tensor], ending: str) -> tuple[dict[str, Tensor], Tensor]:
    """A linear layer's codes with a scale, and the weight that they stand for."""
    weight = torch.randn(200, 150, generator=torch.Generator().manual_seed(4))
    own = scale(weight)
    spread = own
    if own.dim() == 2:
        width = 1 if own.shape[1] == 1 else 128
        spread = own.repeat_interleave(width, 0).repeat_interleave(width, 1)[:200, :150]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    state = {"weight": codes, f"weight{ending}": own, "bias": torch.ones(200)}
    return state, codes.float() * spread


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda w: w.abs().max() / 448,
    "one in a list": lambda w: (w.abs().max() / 448).reshape(1),
    "rows": lambda w: w.abs().amax(1, keepdim=True) / 448,
    "blocks": lambda w: torch.rand(2, 2, generator=torch.Generator().manual_seed(1)) / 50 + 0.01,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ending", ["_scale", "_scale_inv"])
@pytest.mark.parametrize("kind", SCALES)
def test_codes_of_eight_bits(tmp_path: Path, kind: str, ending: str, dtype: torch.dtype) -> None:
    state, weight = fp8(SCALES[kind], ending)
    state["bias"] = state["bias"].to(dtype)
    save_file(state, tmp_path / "it.safetensors")
    model = nn.Linear(150, 200).to(dtype)
    (note,) = fill(model, read_state_dicts(tmp_path / "it.safetensors"))
    assert torch.equal(model.weight, weight.to(dtype))
    assert "1 tensors of FP8 codes" in note.message


@pytest.mark.parametrize("change", ["no scale", "a strange scale"])
def test_codes_without_a_scale(tmp_path: Path, change: str) -> None:
    state, _ = fp8(SCALES["one"], "_scale")
    state["weight_scale"] = torch.ones(3, 5)
    if change == "no scale":
        del state["weight_scale"]
    save_file(state, tmp_path / "it.safetensors")
    given = read_state_dicts(tmp_path / "it.safetensors")
    allowed = Allowed(unexpected=("*_scale",))
    assert "U603" in refusal(lambda: fill(nn.Linear(150, 200), given, "", allowed))
    assert "its numbers are codes" in refusal(lambda: fill(nn.Linear(150, 200), given))
