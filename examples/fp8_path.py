"""What runs in FP8 of GPT-2 and Llama, and does the FP8 path agree with the simulated one?

    python -m examples.fp8_path

Shares are of matmul FLOPs, counted from the graphs of models of real shape on the meta device.
Agreement is between ``fp8`` and ``fp8,simulate=true`` of small models with widths divisible by 16:
loss and every parameter's gradient. Writes ``docs/results/fp8_path.md``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import unitify
from unitify.capture import capture
from unitify.recipe.choices import choose, flop_share
from unitify.recipe.reader import read_recipe
from unitify.rulebook.rule_table import load_rules

ROOT = Path(__file__).resolve().parents[1]
LLAMA: dict[str, Any] = {"num_attention_heads": 32, "num_key_value_heads": 8}
#: Label → config of the published shape. GPT-2's vocabulary is odd; 50304 is it, padded.
SHAPES: Mapping[str, Any] = {
    "GPT-2 small": GPT2Config(),
    "GPT-2 small, vocabulary 50304": GPT2Config(vocab_size=50304),
    "Llama 3 8B": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128256, **LLAMA
    ),
}
RECIPES = ("fp8", "fp8,multiple=1", "fp8,attention=true", "fp8-mixed")
SMALL: Mapping[str, Any] = {
    "GPT-2": GPT2Config(n_layer=2, n_embd=64, n_head=4, n_positions=32, vocab_size=128),
    "Llama": LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128,
    ),
}  # fmt: skip


def build(config: Any) -> nn.Module:
    """The language model of a config."""
    kind = GPT2LMHeadModel if isinstance(config, GPT2Config) else LlamaForCausalLM
    config.use_cache = False
    return kind(config)


def shares(config: Any) -> list[tuple[str, float, float]]:
    """Recipe → share in FP8 of the FLOPs of linear layers, and of all contractions."""
    rules = load_rules()
    with torch.device("meta"):
        ids = torch.zeros(2, 128, dtype=torch.long)
        captured = capture(build(config), (), {"input_ids": ids, "labels": ids})
    found = []
    for name in RECIPES:
        recipe = read_recipe(name)
        assert recipe is not None
        choices = choose(captured, recipe, rules)
        found.append((name, flop_share(choices, weights_only=True), flop_share(choices)))
    return found


def gradients(config: Any, recipe: str) -> dict[str, Tensor]:
    """The loss and the gradient of every parameter, with casts."""
    torch.manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (4, 32))
    batch = {"input_ids": ids, "labels": ids.clone()}
    module = unitify.transform(build(config), (), batch, recipe=recipe, verify=False).eval()
    loss = module(**batch).loss
    loss.backward()
    held = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **held}


def agreement(config: Any) -> tuple[int, int, float]:
    """Tensors, how many are bitwise, and the largest difference, RMS over RMS."""
    real, simulated = gradients(config, "fp8"), gradients(config, "fp8,simulate=true")
    assert real.keys() == simulated.keys()
    equal = sum(torch.equal(real[name], simulated[name]) for name in real)
    worst = max(
        float((real[n] - simulated[n]).norm() / simulated[n].norm())
        for n in real
        if simulated[n].norm() > 0
    )
    return len(real), equal, worst


def main() -> None:
    """Count, run and write."""
    warnings.simplefilter("ignore")
    lines = [
        "# The FP8 path",
        "",
        "`python -m examples.fp8_path`",
        "",
        "Share of matmul FLOPs on FP8 operands, counted from graphs of real shape (2 × 128",
        "tokens): of linear layers, and of all contractions, attention's own among them. `fp8`",
        "leaves out widths that 16 does not divide; `multiple=1` casts those, too.",
        "",
        "| model | recipe | linear layers | all contractions |",
        "|---|---|--:|--:|",
    ]
    for label, config in SHAPES.items():
        for recipe, linear, contractions in shares(config):
            lines.append(f"| {label} | `{recipe}` | {linear:.1%} | {contractions:.1%} |")
    lines += [
        "",
        "`unitify::fp8_linear` (codes multiplied by the device, in all three matmuls of",
        "training) against the same casts and a float32 matmul: loss and every parameter's",
        "gradient of small models. Where a sum rounds otherwise in its last bit, the next cast",
        "may take the neighboring code.",
        "",
        "| model | tensors | bitwise | largest difference, RMS over RMS |",
        "|---|--:|--:|--:|",
    ]
    for label, config in SMALL.items():
        tensors, equal, worst = agreement(config)
        assert math.isfinite(worst)
        lines.append(f"| {label} | {tensors} | {equal} | {worst:.1e} |")
    text = "\n".join(lines) + "\n"
    (ROOT / "docs" / "results" / "fp8_path.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
