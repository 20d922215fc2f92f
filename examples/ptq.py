"""Post-training FP8 of real nets: what it costs in the net's own metric, and in every layer.

    python -m examples.ptq [NET ...]

casts the operands of every contraction and recurrent layer to E4M3, as each of ``CASES`` says,
and writes ``docs/results/ptq.md``. What is in ``ptq.jsonl`` beside it is not run again. See
``examples.nets`` and ``examples.evaluation`` for the packages to install. On one core SmolLM2 takes
half an hour (one evaluation 20 seconds, one conversion 30 to 120), the others one to three minutes.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import unitify
from examples import real_inputs
from examples.evaluation import METRICS, evaluate, wikipedia_tokens
from examples.nets import NETS
from examples.sqnr import alone_sqnr, layer_sqnr, simulated

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
    "real data, headroom, centered": Case(
        "fp8,headroom=measured,center=measured", "measured", has_data=True
    ),
}
#: What is run on perturbed weights, too, how often, and by how much these are moved at random.
COMPARED = ("dynamic amax", "fp8-ptq, no data", "fp8, measured, headroom")
PERTURBED, STEP = 8, 1e-4
#: The same of the nets that take long; of these without signal to noise of the layers.
FEWER = {"smollm2": 4, "crepe": 2}


@dataclass(frozen=True)
class Row:
    """One conversion of a net; ``seed``: of the perturbation of its weights, 0 for none.

    ``layers``: how many are cast; signal to noise of their results in dB, with the casts of all
    layers before them (``accumulated``) and with their own alone: median and worst.
    """

    net: str
    case: str
    seed: int
    metric: float
    layers: int = 0
    accumulated: tuple[float, ...] = ()
    alone: tuple[float, ...] = ()


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


@contextmanager
def perturbed(module: nn.Module, seed: int) -> Iterator[None]:
    """``module`` with every weight moved a little, at random, for a while; as it is for seed 0."""
    generator = torch.Generator().manual_seed(seed)
    held = {name: p.detach().clone() for name, p in module.named_parameters()} if seed else {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in held:
                parameter *= 1 + STEP * torch.randn(parameter.shape, generator=generator)
    yield
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in held:
                parameter.copy_(held[name])


def rows(name: str, label: str, seeds: list[int]) -> Iterator[Row]:
    """One case of a net, run with each seed."""
    if label == "float32":
        yield Row(name, label, 0, evaluate(name, NETS[name].load()[0]))
        return
    module = converted(name, CASES[label])
    inputs = real_inputs.load(name)[1]
    for seed in seeds:
        with perturbed(module, seed):
            metric = evaluate(name, module)
            if seed and name in FEWER:
                yield Row(name, label, seed, metric)
                continue
            levels = layer_sqnr(module, (), inputs), alone_sqnr(module, (), inputs)
        count = len(levels[0])
        yield Row(name, label, seed, metric, count, *(_summary(each) for each in levels))


def _summary(levels: Mapping[str, float]) -> tuple[float, float]:
    return statistics.median(levels.values()), min(levels.values())


def runs(name: str) -> Iterator[tuple[str, list[int]]]:
    """Every case of a net, and the seeds with which it is run; what is compared comes first."""
    yield "float32", [0]
    for label in (*COMPARED, *(c for c in CASES if c not in COMPARED)):
        if not CASES[label].has_data or batches(name) is not None:
            count = FEWER.get(name, PERTURBED) if label in COMPARED else 0
            yield label, list(range(count + 1))


Rows = Mapping[tuple[str, str, int], Row]


def read(path: Path) -> Rows:
    """The rows that a file has."""
    if not path.exists():
        return {}
    found = [Row(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return {(r.net, r.case, r.seed): r for r in found}


def tables(held: Rows) -> list[str]:
    """Metrics, how sure they are, and signal to noise of layers, of every net that has been run."""
    nets = [name for name in METRICS if (name, "float32", 0) in held]
    columns = ("float32", *CASES)
    body = [
        [name, _label(name), *(_number(held.get((name, c, 0))) for c in columns)] for name in nets
    ]
    lines = [*_table(["net", "metric", *columns], body), "", *_luck(held, nets)]
    for key, text in (
        ("alone", "each with its own casts alone, on exact operands:"),
        ("accumulated", "with the casts of all layers before it:"),
    ):
        lines += ["", "Signal to noise of the layers' results on real data in dB,", text]
        lines += ["median / worst. A range: over the perturbed weights.", ""]
        body = [
            [name, str(_layers(held, name)), *(_levels(held, name, c, key) for c in CASES)]
            for name in nets
        ]
        lines += _table(["net", "layers", *CASES], body)
    return lines


def _luck(held: Rows, nets: list[str]) -> list[str]:
    """What is compared, with its spread."""
    body = []
    for name in nets:
        found = {
            c: [r.metric for (n, k, _), r in held.items() if (n, k) == (name, c)] for c in COMPARED
        }
        counts = " / ".join(str(len(v)) for v in found.values())
        cells = [
            f"{statistics.fmean(v):.4f} ± {statistics.stdev(v):.4f}" if len(v) > 1 else ""
            for v in found.values()
        ]
        cells += [_better(name, found[c], found["dynamic amax"]) for c in COMPARED[1:]]
        body.append([name, counts, *cells])
    return [
        "How much of a difference is luck: the same conversions again, each weight moved at random",
        f"by {STEP:g} of itself; mean ± standard deviation over runs, of which one is unmoved, and",
        "how much better than dynamic amax the others are (negative: worse) ± the standard error.",
        "",
        *_table(["net", "runs", *COMPARED, *(f"{c}: better by" for c in COMPARED[1:])], body),
    ]


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def _label(name: str) -> str:
    return f"{METRICS[name].label} {'↑' if METRICS[name].higher_is_better else '↓'}"


def _number(row: Row | None) -> str:
    return f"{row.metric:.4f}" if row else ""


def _better(name: str, own: list[float], amax: list[float]) -> str:
    if min(len(own), len(amax)) < 2:
        return ""
    sign = 1 if METRICS[name].higher_is_better else -1
    difference = sign * (statistics.fmean(own) - statistics.fmean(amax))
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in (own, amax)))
    return f"{difference:+.4f} ± {error:.4f}"


def _layers(held: Rows, name: str) -> int:
    return max((r.layers for (net, _, _), r in held.items() if net == name), default=0)


def _levels(held: Rows, name: str, case: str, key: str) -> str:
    found = [getattr(r, key) for (n, c, _), r in held.items() if (n, c) == (name, case)]
    found = [levels for levels in found if levels]
    return " / ".join(_range([levels[i] for levels in found]) for i in (0, 1)) if found else ""


def _range(values: list[float]) -> str:
    texts = [f"{v:.1f}" for v in (min(values), max(values))]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def main() -> None:
    """Run what is missing of some nets, or of all; write the tables."""
    warnings.simplefilter("ignore")
    path = RESULTS / "ptq.jsonl"
    for name in sys.argv[1:] or METRICS:
        for label, seeds in runs(name):
            missing = [seed for seed in seeds if (name, label, seed) not in read(path)]
            for made in rows(name, label, missing) if missing else ():
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(made)) + "\n")
                print(made, flush=True)
    lines = [
        "# Post-training FP8",
        "",
        "`python -m examples.ptq`",
        "",
        "The operands of every matmul, convolution and recurrent layer in E4M3, simulated;",
        "hidden states of recurrent layers stay. No data but for `measured`, which measures the",
        "inputs of `examples.nets` (random, but MiniLM's sentences), and for the last way,",
        "which measures real data (not the metric's).",
        "",
        *tables(read(path)),
    ]
    (RESULTS / "ptq.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
