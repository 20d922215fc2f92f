"""Peak memory of ``transform``, in a process of its own for each size.

python -m benchmarks.memory WIDTH
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import unitify

WIDTHS = (512, 1024)
LAYERS = 8


def _highest() -> int:
    """The most memory since the last ``_forget``, in bytes, which Linux alone counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(width: int) -> str:
    """MiB of the model, and the peak of ``transform`` over it.

    The peak has the model in it, and not what the process held beside it.
    """
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=LAYERS,
        num_attention_heads=8, num_key_value_heads=4, vocab_size=1024, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, 1024, (2, 12))
    size = sum(p.nbytes for p in model.parameters())
    _forget()
    before = _highest()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        unitify.transform(model, example_kwargs={"input_ids": ids, "labels": ids})
    return f"{size / 2**20:.0f} {(_highest() - before + size) / size:.1f}"


def peaks() -> Iterator[list[str]]:
    """A row a width."""
    for width in WIDTHS:
        command = [sys.executable, "-m", "benchmarks.memory", str(width)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield [str(width), *done.stdout.split()[-2:]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(measure(int(sys.argv[1])))
