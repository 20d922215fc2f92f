"""What unit scaling as published has to constrain in models of common shapes, and what that costs.

    python -m examples.constraints [NAME ...]

reads each model on the meta device, without weights, and writes ``docs/results/constraints.md``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from examples.scheme_study.constraints import Constraints, constraints
from examples.scheme_study.schemes import SchemeShares, predicted_schemes
from examples.scheme_study.unit_graph import unit_graph
from unitify.analysis.analyze import analyze
from unitify.capture.whole import capture
from unitify.plan.planner import plan
from unitify.rulebook.rule_table import load_rules

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "constraints.md"
#: Octaves below which two factors are one.
APART = 0.05
#: Schemes of the page, by the heads of their columns.
SHOWN = {
    "geometric mean": "unit scaling, geometric mean",
    "forward factor": "unit scaling, forward factor",
    "unitify, unit": "unitify, unit",
    "unitify, preserve": "unitify, preserve",
}
Built = tuple[nn.Module, dict[str, Tensor]]


def tokens(vocabulary: int) -> dict[str, Tensor]:
    """A batch of tokens, which are their own labels."""
    ids = torch.randint(0, vocabulary, (2, 64), device="cpu")
    return {"input_ids": ids, "labels": ids.clone()}


def gpt2(tied: bool) -> Built:
    """GPT-2 of 124 million parameters."""
    config = GPT2Config(tie_word_embeddings=tied, use_cache=False)
    return GPT2LMHeadModel(config), tokens(config.vocab_size)


def llama() -> Built:
    """A Llama as wide and deep as that, untied."""
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        vocab_size=32000, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokens(config.vocab_size)


MODELS: dict[str, Callable[[], Built]] = {
    "GPT-2 small": lambda: gpt2(tied=True),
    "GPT-2 small, untied": lambda: gpt2(tied=False),
    "Llama, 12 layers of 768": llama,
}


def read(name: str) -> tuple[Constraints, dict[str, SchemeShares]]:
    """The constraints of a model, and schemes by name."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model, inputs = MODELS[name]()
    rules = load_rules()
    captured = capture(model, (), dict(inputs))
    estimates = analyze(captured, rules).estimates
    chosen = plan(captured, estimates, rules)
    unit = unit_graph(captured, rules)
    found = constraints(captured, chosen, rules, estimates=estimates, unit=unit)
    rows = predicted_schemes(captured, chosen, rules, found, unit, estimates)
    return found, {row.scheme: row for row in rows}


def row(name: str) -> str:
    """A line of the table."""
    found, schemes = read(name)
    apart = sum(any(abs(x) > APART for x in op.off.values()) for op in found.constrained)
    cells = [
        f"{100 * held.share('unit'):.0f} %, {held.octaves:.2f}"
        for held in (schemes[scheme].backward for scheme in SHOWN.values())
    ]
    counts = f"{len(found.bridges):,} of {found.edges:,}"
    constrained = f"{len(found.constrained):,} of {len(found.operations):,}"
    return f"| {name} | {counts} | {constrained} | {apart} | {' | '.join(cells)} |"


def main() -> None:
    """Write the page, or print the rows of the models that are named."""
    warnings.simplefilter("ignore")
    names = sys.argv[1:] or list(MODELS)
    lines = [
        "# What unit scaling as published constrains",
        "",
        "`python -m examples.constraints`. Uses of values that are bridges of the graph;",
        "operations that must use one factor for both directions, and of how many the factors",
        "differ. Then of all gradients, by prediction: how many have RMS in [1/2, 2], and how many",
        "octaves they are off one (root mean square), under the geometric mean of Blake et al.",
        "2023, under the result's factor (u-μP), and with unitify's rescales, on 64 tokens.",
        "[schemes.md](../schemes.md#what-published-unit-scaling-constrains) says how.",
        "",
        f"| model | bridges | constrained | differ | {' | '.join(SHOWN)} |",
        f"|{'---|' * (4 + len(SHOWN))}",
    ]
    for name in names:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if not sys.argv[1:]:
        PAGE.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
