"""How long ``unitify check`` takes, from GPT-2's size to a graph of 6,000 nodes.

    python -m examples.check_speed [LAYERS …]

Models have GPT-2 small's shape (width 768, vocabulary 50,257) and the given number of layers; they
lie on the meta device, so that depth costs no memory. Printed: seconds of capture and of each step,
and of processor time of all together (``cpu``), which other work on the machine hardly changes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unitify.capture.source import Repository
from unitify.check.checking import check
from unitify.check.settings import Settings
from unitify.check.source_lines import SourceLines
from unitify.check.subject import subject_of
from unitify.recipe.recipe import FP8
from unitify.rulebook.rule_table import load_rules


def measure(layers: int) -> dict[str, float]:
    """Seconds of capture and of every step of a check, and the number of nodes and findings."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=layers, attn_implementation="sdpa"))
        ids = torch.zeros(2, 16, dtype=torch.long)
    rules = load_rules()
    start, cpu = time.perf_counter(), time.process_time()
    subject = subject_of(model, (), {"input_ids": ids, "labels": ids}, FP8, rules)
    captured = time.perf_counter() - start
    lines = SourceLines(Repository.around(Path()), model, None)
    outcome = check(subject, Settings(), rules, lines)
    (part,) = subject.parts
    nodes = len(part.capture.graph.nodes)
    found = {"layers": layers, "nodes": nodes, "judged": len(outcome.cases)}
    seconds = {"capture": captured, **outcome.seconds, "cpu": time.process_time() - cpu}
    return {**found, "findings": len(outcome.findings), **seconds}


def main() -> None:
    """Print a line for each depth."""
    for layers in [int(text) for text in sys.argv[1:]] or [12, 40, 160]:
        print("  ".join(f"{name} {number:.4g}" for name, number in measure(layers).items()))


if __name__ == "__main__":
    main()
