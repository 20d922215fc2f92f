"""How many rescales does a plan have, and how long does it take to find the fewest?

    python -m examples.rescales

writes ``docs/results/rescales.md``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import fx, nn
from transformers import LlamaConfig, LlamaForCausalLM

import unitify
from benchmarks.models import FAMILIES, SIZES, build
from examples.nets import NETS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "rescales.md"
#: Column → options of ``transform``.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "narrow (`fp16`)": {"recipe": "fp16"},
    "wide (no recipe)": {},
    '"casts" (`fp8`)': {"recipe": "fp8,simulate=true"},
}
PRETRAINED = ("mobilenet_v2", "smollm2")
DEEP = 12


def models() -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Name, model, and keyword inputs of one call."""
    size = SIZES[-1]
    for family in FAMILIES:
        yield f"{family}, {size.layers} layers", *build(family, size)
    _, batch = build("Llama", size)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=192, num_hidden_layers=DEEP, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=1024, use_cache=False,
    )  # fmt: skip
    yield f"Llama, {DEEP} layers", LlamaForCausalLM(config), batch
    for name in PRETRAINED:
        yield name, *NETS[name].load()


def rescales(graph: fx.Graph) -> int:
    """The calls that multiply a value or its gradient by a power of two, and do nothing else."""
    return sum("unitify.rescale" in str(node.target) for node in graph.nodes)


def cells(model: nn.Module, batch: dict[str, Any]) -> list[str]:
    """Operations of the captured graph, and for each way rescales, seconds of the plan and gap."""
    row: list[str] = []
    for options in WAYS.values():
        done: dict[str, float] = {}

        def observe(stage: str, _: Any, done: dict[str, float] = done) -> None:
            done[stage] = time.perf_counter()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", unitify.UnitifyWarning)
            module = unitify.transform(
                model, example_kwargs=dict(batch), verify=False, on_stage=observe, **options
            )
        (part,) = module.parts.values()
        operations = sum(node.op == "call_function" for node in part.capture.graph.nodes)
        row = row or [str(operations)]
        count, gap = rescales(part.graph), part.plan.gap
        seconds = done["plan"] - done.get("estimate", done["reparametrize"])
        proven = "" if not gap else f", gap {100 * gap:.1f} %"
        row.append(f"{count} ({count / operations:.0%}), {seconds:.1f} s{proven}")
    return row


def main() -> None:
    """Write the page."""
    lines = [
        "# How many rescales a plan has",
        "",
        "`python -m examples.rescales`: rescales (their share of the operations of the captured "
        "graph), seconds to plan them, and the gap where they are not proven to be the fewest. "
        "True weights, scales measured on one batch; one thread. What a step of training costs is "
        "in [benchmarks](benchmarks.md).",
        "",
        f"| model | operations | {' | '.join(WAYS)} |",
        f"|---|--: |{'--: |' * len(WAYS)}",
    ]
    for name, model, batch in models():
        lines.append(f"| {name} | {' | '.join(cells(model, batch))} |")
        print(lines[-1], flush=True)
    PAGE.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
