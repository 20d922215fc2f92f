"""Post-training FP8 of real nets: what it costs in the net's own metric, and in every layer.

    python -m examples.ptq [NET ...]

casts the operands of every product and recurrent layer to E4M3, in every way that ``CASES`` lists,
and writes ``docs/results/ptq.md``. What is in ``ptq.jsonl`` beside it is not run again. See
``examples.nets`` and ``examples.evaluation`` for the packages to install. SmolLM2 takes a minute a
case on one core, the others seconds.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import unitify
from examples import real_inputs
from examples.evaluation import METRICS, evaluate, wikipedia_tokens
from examples.nets import NETS
from examples.sqnr import layer_sqnr, simulated

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


@dataclass(frozen=True)
class Case:
    """A way to convert: recipe, where its scales come from, and whether real data is needed."""

    recipe: str
    scales: str = "analysis"
    has_data: bool = False


CASES: Mapping[str, Case] = {
    "plain": Case("fp8-plain"),
    "dynamic amax": Case("fp8-amax"),
    "fp8, no data": Case("fp8"),
    "fp8-ptq, no data": Case("fp8-ptq"),
    "fp8, measured": Case("fp8", "measured"),
    "fp8, measured, headroom": Case("fp8,headroom=measured", "measured"),
    "real data, headroom, centred": Case(
        "fp8,headroom=measured,centre=measured", "measured", has_data=True
    ),
}
#: How often dynamic amax is run on weights moved by one part in 10⁴: what is luck in a metric.
PERTURBED = 3


@dataclass(frozen=True)
class Row:
    """One conversion of a net; ``median`` and ``worst``: signal to noise of its layers, in dB."""

    net: str
    case: str
    metric: float
    layers: int = 0
    median: float | None = None
    worst: float | None = None


def batches(name: str) -> list[dict[str, Any]] | None:
    """Real data that is not the metric's, for the nets for which there is some."""
    if name == "smollm2":
        rows = wikipedia_tokens(4, offset=1024).split(2)
        return [{"input_ids": row, "labels": row.clone()} for row in rows]
    return None


def converted(name: str, case: Case) -> unitify.UnitScaledModule:
    """A net with the casts of a case, every width cast, in eval mode."""
    model, inputs = NETS[name].load()
    chosen = simulated(case.recipe, multiple=1)
    given = batches(name) if case.has_data else None
    module = unitify.transform(
        model, (), inputs, verify=False, recipe=chosen, scales=case.scales, batches=given
    )
    return module.eval()


def perturbed(name: str, seed: int) -> nn.Module:
    """Dynamic amax of the net with every weight moved by one part in 10⁴, at random."""
    model, inputs = NETS[name].load()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + 1e-4 * torch.randn(parameter.shape, generator=generator)
    recipe = simulated("fp8-amax", multiple=1)
    return unitify.transform(model, (), inputs, verify=False, recipe=recipe).eval()


def row(name: str, label: str) -> Row:
    """One case of a net, run."""
    if label == "float32":
        return Row(name, label, evaluate(name, NETS[name].load()[0]))
    if label.startswith("perturbed"):
        return Row(name, label, evaluate(name, perturbed(name, int(label.split()[1]))))
    module = converted(name, CASES[label])
    levels = list(layer_sqnr(module, (), real_inputs.load(name)[1]).values())
    metric = evaluate(name, module)
    return Row(name, label, metric, len(levels), statistics.median(levels), min(levels))


def labels(name: str) -> Iterator[str]:
    """Everything that is run of a net."""
    yield "float32"
    for label, case in CASES.items():
        if not case.has_data or batches(name) is not None:
            yield label
    yield from (f"perturbed {seed}" for seed in range(PERTURBED))


def read(path: Path) -> dict[tuple[str, str], Row]:
    """The rows that a file has."""
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return {(r.net, r.case): r for r in rows}


def tables(rows: Mapping[tuple[str, str], Row]) -> list[str]:
    """Metrics, and signal to noise of layers, of every net that has been run."""
    nets = [name for name in METRICS if (name, "float32") in rows]
    head = ["net", "metric", "float32", *CASES, "dynamic amax, perturbed"]
    quality, noise = [head, ["---"] * len(head)], [["net", "layers", *CASES]]
    noise.append(["---"] * len(noise[0]))
    for name in nets:
        metric = METRICS[name]
        held = {label: rows.get((name, label)) for label in ("float32", *CASES)}
        luck = [r.metric for (n, c), r in rows.items() if n == name and c.startswith("perturbed")]
        cells = [name, f"{metric.label} {'↑' if metric.higher_is_better else '↓'}"]
        cells += [f"{r.metric:.4f}" if r else "" for r in held.values()]
        quality.append([*cells, f"{min(luck):.4f} to {max(luck):.4f}" if luck else ""])
        count = next((r.layers for r in held.values() if r and r.layers), 0)
        levels = [f"{r.median:.1f} / {r.worst:.1f}" if r else "" for r in list(held.values())[1:]]
        noise.append([name, str(count), *levels])
    return [
        *(f"| {' | '.join(line)} |" for line in quality),
        "",
        "Signal to noise of the layers' results on real data in dB, accumulated from the inputs:",
        "median / worst.",
        "",
        *(f"| {' | '.join(line)} |" for line in noise),
    ]


def main() -> None:
    """Run what is missing of some nets, or of all; write the tables."""
    warnings.simplefilter("ignore")
    path = RESULTS / "ptq.jsonl"
    for name in sys.argv[1:] or METRICS:
        for label in labels(name):
            if (name, label) not in read(path):
                made = row(name, label)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(made)) + "\n")
                print(made, flush=True)
    lines = [
        "# Post-training FP8",
        "",
        "`python -m examples.ptq`",
        "",
        "The operands of every matrix product, convolution and recurrent layer in E4M3, simulated;",
        "hidden states of recurrent layers stay. No data but for `measured`, which measures the",
        "random inputs of `examples.nets`, and for the last way, which measures real data (not",
        "the metric's). Perturbed: dynamic amax again, every weight moved by one part in 10⁴:",
        "what of a difference is luck.",
        "",
        *tables(read(path)),
    ]
    (RESULTS / "ptq.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
