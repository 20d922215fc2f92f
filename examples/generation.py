"""How long a token takes with a cache: a transformed module against its model.

    python -m examples.generation

Each model generates with its cache, greedily, in turn with its module; a pair of runs gives one
ratio, and the table has medians and quartiles of those. Tokens are compared. Writes
``docs/results/generation.md``.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import unitify

ROOT = Path(__file__).resolve().parents[1]
PROMPT, TOKENS, PAIRS = 32, 16, 9
MODELS: Mapping[str, Any] = {
    "Llama, 4 layers of width 256": LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=4096, eos_token_id=None,
    ),
    "Llama, 12 layers of width 576": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=8192, eos_token_id=None,
    ),
    "GPT-2, 6 layers of width 384": GPT2Config(
        n_embd=384, n_layer=6, n_head=6, vocab_size=8192, eos_token_id=None
    ),
}  # fmt: skip
#: Label → recipe and placement. With a recipe weights are held as codes.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "no recipe": {},
    'no recipe, placement "casts"': {"placement": "casts"},
    "`fp8`, weights as codes": {"recipe": "fp8"},
}


def seconds(model: Any, ids: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds a token, and the tokens."""
    begin = time.perf_counter()
    made: torch.Tensor = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)
    return (time.perf_counter() - begin) / TOKENS, made


def ratios(model: Any, module: Any, ids: torch.Tensor) -> tuple[list[float], float, bool]:
    """Of each pair of runs the module's time over the model's; the model's median; same tokens?"""
    found, own = [], []
    _, expected = seconds(model, ids)
    _, tokens = seconds(module, ids)
    for number in range(PAIRS):
        # Who comes first alternates.
        runs = [(model, 0), (module, 1)][:: 1 if number % 2 else -1]
        times = dict(sorted((place, seconds(one, ids)[0]) for one, place in runs))
        found.append(times[1] / times[0])
        own.append(times[0])
    return found, statistics.median(own), torch.equal(tokens, expected)


def main() -> None:
    """Measure and write."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "# Generation",
        "",
        "`python -m examples.generation`",
        "",
        f"Time a token with a cache, greedy, {TOKENS} tokens behind a prompt of {PROMPT}, on one",
        f"CPU thread: a transformed module over its model, {PAIRS} pairs of runs in turn. A CPU",
        "has no fast matmul of FP8 codes: the figure of `fp8` is what its operators cost there.",
        "",
        "| model | ms a token | module | ratio, median | quartiles | same tokens |",
        "|---|--:|---|--:|--:|---|",
    ]
    for label, config in MODELS.items():
        torch.manual_seed(0)
        kind = GPT2LMHeadModel if isinstance(config, GPT2Config) else LlamaForCausalLM
        model = kind(config).eval()
        ids = torch.randint(3, config.vocab_size, (1, PROMPT))
        for way, options in WAYS.items():
            module = unitify.transform(
                model, (), {"input_ids": ids.expand(2, -1)}, verify=False, **options
            )
            if options.get("recipe"):
                module = module.to_inference()
            found, own, same = ratios(model, module, ids)
            low, middle, high = statistics.quantiles(found, n=4)
            lines.append(
                f"| {label} | {own * 1e3:.1f} | {way} | {middle:.3f} | {low:.3f} .. {high:.3f} | "
                f"{'yes' if same else 'no'} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    (ROOT / "docs/results/generation.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
