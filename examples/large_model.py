"""A model of 70 billion parameters without its weights: capture, analysis, plan and rewrite.

    python -m examples.large_model [LAYERS]

builds a Llama of 70B shape on the meta device, transforms it there, checks the emitted graph
without running it, and writes time and memory to ``docs/results/large_model.md``.

    unitify report examples.large_model:model --inputs examples.large_model:tokens -o large.html

shows its every value.
"""

from __future__ import annotations

import math
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import unitify
from unitify.rulebook.laws import is_scalable

ROOT = Path(__file__).resolve().parents[1]


def llama(layers: int) -> LlamaForCausalLM:
    """Llama 3 70B by its published shape, with this many of its 80 layers."""
    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def model() -> LlamaForCausalLM:
    """All 80 layers."""
    return llama(80)


def tokens() -> dict[str, torch.Tensor]:
    """A batch of tokens, which are their own labels."""
    ids = torch.zeros(2, 128, dtype=torch.long, device="meta")
    return {"input_ids": ids, "labels": ids.clone()}


def peak() -> float:
    """Peak memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Transform and report."""
    warnings.simplefilter("ignore")
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 80
    built = llama(layers)
    rows: list[tuple[str, float, float]] = []
    clock = time.perf_counter()

    def done(stage: str, _made: Any) -> None:
        nonlocal clock
        now = time.perf_counter()
        rows.append((stage, now - clock, peak()))
        print(f"{stage:10} {now - clock:8.1f} s   peak {peak():.2f} GiB", flush=True)
        clock = now

    observer: Callable[[str, Any], None] = done
    module = unitify.transform(built, example_kwargs=tokens(), on_stage=observer)
    estimates = [n for n in module.capture.graph.nodes if is_scalable(n)]
    billions = sum(p.numel() for p in built.parameters()) / 1e9
    nodes = len(module.capture.graph.nodes)
    scales = module.plan.values.values()
    spread = max(abs(math.log2(s.bwd)) for s in scales)
    lines = [
        "# A model of 70B shape on the meta device",
        "",
        f"`python -m examples.large_model{' ' + sys.argv[1] if len(sys.argv) > 1 else ''}`",
        "",
        f"{layers} layers, {billions:.1f} billion parameters, {nodes} nodes captured,"
        f" {len(estimates)} floating values, {len(module.graph.nodes)} nodes emitted;"
        f" gradient scales span 2^±{spread:.0f}.",
        "",
        "| stage | seconds | peak GiB |",
        "|---|---|---|",
        *[f"| {stage} | {seconds:.1f} | {memory:.2f} |" for stage, seconds, memory in rows],
        f"| all | {sum(s for _, s, _ in rows):.1f} | {peak():.2f} |",
        "",
    ]
    (ROOT / "docs" / "results" / "large_model.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
