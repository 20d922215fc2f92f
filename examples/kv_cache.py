"""Keys and values in eight bits: what they cost a language model, by where scales come from.

    python -m examples.kv_cache

SmolLM2 reads Wikipedia with keys and values in E4M3 and everything else in float32. Then it
reads prompts that nobody would calibrate with, and the cache counts what is out of its range.
Writes ``docs/results/kv_cache.md``. See ``examples.evaluation`` for the packages to install.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import unitify
from examples.evaluation import perplexity, wikipedia_tokens
from examples.nets import NETS

ROOT = Path(__file__).resolve().parents[1]
#: Where scales come from → recipe and ``scales``. Nothing else is cast.
WAYS: Mapping[str, tuple[str, str]] = {
    "weights and norm gains, no data": ("fp8", "analysis"),
    "one run on text of its own": ("fp8", "measured"),
    "1.0": ("fp8-plain", "analysis"),
    "the largest element of each call": ("fp8-amax", "analysis"),
}
ALONE = "exclude=*weight,kv_cache=e4m3"
LENGTH = 256


def prompts(vocabulary: int) -> Mapping[str, Tensor]:
    """Tokens [1, LENGTH] by what they are."""
    generator = torch.Generator().manual_seed(0)
    text = wikipedia_tokens(1, LENGTH)
    return {
        "Wikipedia": text,
        "one token, repeated": text[:, 7:8].expand(1, LENGTH),
        "two tokens in turn": text[:, 7:9].repeat(1, LENGTH // 2),
        "random tokens": torch.randint(vocabulary, (1, LENGTH), generator=generator),
        "rare tokens": torch.arange(vocabulary - LENGTH, vocabulary)[None],
        "special tokens": torch.arange(16).repeat(LENGTH // 16)[None],
        "Wikipedia, backwards": text.flip(1),
    }


def main() -> None:
    """Measure and write."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, inputs = NETS["smollm2"].load()
    kept = transformers.DynamicCache()
    with torch.no_grad():
        reference = perplexity(model)
        model(input_ids=wikipedia_tokens()[:4], past_key_values=kept, use_cache=True)
    lines = [
        "# Keys and values in FP8",
        "",
        "`python -m examples.kv_cache`",
        "",
        "SmolLM2 (135M), 16 windows of 256 tokens of Wikipedia. Keys and values are in E4M3, and",
        "all else in float32. A cache of codes takes a quarter of the memory of one of float32.",
        "",
        "| scales from | perplexity | over float32 | RMS of what is kept, log2, over the layers |",
        "|---|--:|--:|--:|",
        f"| float32 | {reference:.4f} | | |",
    ]
    modules: dict[str, Any] = {}
    for label, (recipe, scales) in WAYS.items():
        module = unitify.transform(
            model, (), inputs, recipe=f"{recipe},{ALONE}", scales=scales, verify=False
        ).eval()
        with torch.no_grad():
            found = perplexity(module)
        stored = ""
        if recipe != "fp8-amax":
            modules[label] = module
            stored = _distance(module, kept)
        lines.append(f"| {label} | {found:.4f} | {found / reference - 1:+.3%} | {stored} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Out of the cache's range, of {LENGTH} tokens that are read at once:",
        "",
        "| prompt | " + " | ".join(f"scales from {label}" for label in modules) + " |",
        "|---|" + "--:|" * len(modules),
    ]
    for label, tokens in prompts(model.config.vocab_size).items():
        row = []
        for module in modules.values():
            cache = unitify.kv_cache(module)
            with torch.no_grad():
                module(input_ids=tokens, past_key_values=cache, use_cache=True)
            row.append(f"{cache.clipped:.4%}")
        lines.append(f"| {label} | {' | '.join(row)} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    (ROOT / "docs/results/kv_cache.md").write_text(text, encoding="utf-8")


def _distance(module: Any, kept: Any) -> str:
    """log2 of the RMS of keys and values as they are kept, over all layers: least and most."""
    found = [
        math.log2(float(x.square().mean().sqrt()) / scale)
        for layer, each in unitify.kv_cache(module).scales.items()
        for x, scale in (
            (kept.layers[layer].keys, each.key),
            (kept.layers[layer].values, each.value),
        )
    ]
    return f"{min(found):.1f} .. {max(found):.1f}"


if __name__ == "__main__":
    main()
