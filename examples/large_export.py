"""Export of checkpoints of growing size: memory stays flat, and time grows with the bytes.

    python -m examples.large_export [GB ...]

writes Llama-shaped checkpoints in bfloat16 and in shards (1, 4 and 12 GB unless given) to a
temporary folder, converts each to FP8 for runtimes with predicted and with measured scales, and
copies its files with ``cp`` before and after. It writes ``docs/results/large_export.md`` and
deletes the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unitify.serve.shards import INDEX, Promise, index, write_shard

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "large_export.md"
SHARD = 500 * 2**20
WIDTH, INNER = 2048, 5632
SCALES = ("analysis", "measured")


def config(gigabytes: float) -> LlamaConfig:
    """As many layers as the size needs, of one width: the largest tensor is the same."""
    layer = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    outside = 2 * 2 * 32000 * WIDTH
    return LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=16, vocab_size=32000,
        num_hidden_layers=max(1, round((gigabytes * 2**30 - outside) / layer)),
        dtype="bfloat16", tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def write_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write the checkpoint, tensor by tensor. Returns its size in bytes."""
    made = config(gigabytes)
    made.save_pretrained(folder)
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(made)
    shards: list[list[Promise]] = [[]]
    for name, tensor in model.state_dict().items():
        if sum(p.size for p in shards[-1]) > SHARD:
            shards.append([])
        shards[-1].append(_drawn(name, tuple(tensor.shape)))
    count = len(shards)
    placed = {f"model-{i:05}-of-{count:05}.safetensors": s for i, s in enumerate(shards, 1)}
    for file, promises in placed.items():
        write_shard(folder / file, promises, lambda _: None)
    described = index(placed)
    (folder / INDEX).write_text(json.dumps(described))
    return int(described["metadata"]["total_size"])


def _drawn(name: str, shape: tuple[int, ...]) -> Promise:
    def make() -> torch.Tensor:
        drawn = torch.randn(shape, dtype=torch.bfloat16)
        return drawn.abs() if len(shape) == 1 else drawn * shape[-1] ** -0.5

    return Promise(name, torch.bfloat16, shape, make)


def measured(command: list[str]) -> tuple[float, float, float]:
    """Seconds of a command, and its peak memory in GiB: its own, and with mapped files."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_alone())
    own = whole = 0
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        own = max(own, _kib(rows, "RssAnon"))
        whole = max(whole, _kib(rows, "VmRSS"))
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - started, own / 2**20, whole / 2**20


def _kib(rows: dict[str, str], name: str) -> int:
    return int(rows.get(name, "0").split()[0])


def _alone() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def rows(gigabytes: float, folder: Path) -> Iterator[list[str]]:
    """A row for each source of scales, for a checkpoint of this size."""
    source, out = folder / "source", folder / "out"
    source.mkdir(parents=True)
    size = write_checkpoint(source, gigabytes)
    largest = 2 * 32000 * WIDTH
    for scales in SCALES:
        copied = []
        for turn in range(2):
            copied.append(measured(["cp", "-r", str(source), str(out)])[0])
            shutil.rmtree(out)
            if not turn:
                command = [sys.executable, "-m", "unitify", "convert", str(source), "-o", str(out)]
                options = ["--recipe", "fp8,exclude=lm_head", "--format", "compressed-tensors"]
                scaled = ["--scales", scales, "--no-verify"]
                seconds, own, whole = measured([*command, *options, *scaled])
                shutil.rmtree(out)
        yield [
            f"{size / 2**30:.1f}", str(config(gigabytes).num_hidden_layers), scales,
            f"{seconds:.0f}", f"{size / 2**20 / seconds:.0f}",
            f"{sum(copied) / 2:.1f}", f"{seconds / (sum(copied) / 2):.1f}",
            f"{own:.2f}", f"{whole:.2f}", f"{largest / 2**30:.2f}",
        ]  # fmt: skip
    shutil.rmtree(folder)


def main() -> None:
    """Measure every size, and write the page."""
    sizes = [float(size) for size in sys.argv[1:]] or [1.0, 4.0, 12.0]
    head = [
        "GiB", "layers", "scales", "seconds", "MiB/s", "`cp`, seconds", "ratio",
        "own memory, GiB", "with mapped files", "largest tensor",
    ]  # fmt: skip
    lines = [
        "# Exports of growing size",
        "",
        f"`python -m examples.large_export {' '.join(f'{size:g}' for size in sizes)}`: "
        "Llama-shaped checkpoints in bfloat16, in shards of half a GiB, to FP8 for runtimes, "
        "without opening the result. Own memory is what the process allocated; mapped pages of "
        "files come on top, and the system drops them when it needs memory.",
        "",
        f"| {' | '.join(head)} |",
        f"|{' --: |' * len(head)}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            for row in rows(size, Path(folder) / f"{size:g}"):
                print(" | ".join(row), flush=True)
                lines.append(f"| {' | '.join(row)} |")
    PAGE.write_text("\n".join([*lines, ""]), "utf-8")


if __name__ == "__main__":
    main()
