"""Quality against the share of FLOPs in FP8: what ``fp8-auto`` leaves in BF16, and other choices.

    python -m examples.ptq_curve [NET ...]

Four ways to choose the contractions that stay in BF16, at the same shares of FLOPs in FP8: by noise
that is predicted with no data (``fp8-auto``), by noise that each contraction alone was measured to
add on real data, and at random, twice. Writes ``docs/results/ptq_curve.md`` and ``.svg``; what
is in ``ptq_curve.jsonl`` beside them is not run again. A quarter of an
hour of one core, most of it SmolLM2's.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import unitify
from examples import real_inputs
from examples.evaluation import METRICS, evaluate
from examples.nets import NETS
from examples.sqnr import simulated
from unitify.cast.casting import cast_parts
from unitify.module.assembly import parts_in
from unitify.noise.measured import measured_noise, output_names
from unitify.noise.mixed_precision import Sensitivity, leave_out
from unitify.noise.operand_casts import operand_casts
from unitify.noise.sensitivity import sensitivity
from unitify.recipe.choices import Choice, flop_share
from unitify.rulebook.rule_table import load_rules

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
RULES = load_rules()
SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.55, 0.4, 0.2)
#: Of nets that take long; these are left out at random once.
FEWER: Mapping[str, tuple[float, ...]] = {"smollm2": (1.0, 0.9, 0.8, 0.7, 0.55, 0.4)}
WAYS = ("fp8-auto, no data", "measured, each alone", "random 0", "random 1")
#: Net → what it is to reach. SmolLM2: 24.4 of 23.94 elsewhere, and as much more than float32 here.
TARGETS: Mapping[str, str] = {
    "mobilenet_v2": "cosine above 0.98",
    "smollm2": "perplexity below 24.4 / 23.94 of float32's",
}


@dataclass(frozen=True)
class Point:
    """One choice, evaluated; ``share``: of the FLOPs of contractions in FP8."""

    net: str
    way: str
    asked: float
    share: float
    metric: float
    left: int


class Subject:
    """A net in ``fp8-ptq``, of which any contractions can be put into BF16."""

    def __init__(self, name: str) -> None:
        self.name = name
        model, inputs = NETS[name].load()
        self.module = unitify.transform(
            model,
            (),
            inputs,
            verify=False,
            recipe=simulated("fp8-ptq", multiple=1),
            on_stage=self._note,
        ).eval()
        self.choices = self.module.casts
        self.cast = {c.value: c for c in self.choices if c.is_contraction and c.is_cast}
        self.flops = {name: float(c.flops) for name, c in self.cast.items()}

    def _note(self, stage: str, made: Any) -> None:
        if stage == "rewrite":
            (self.part,) = made

    @cached_property
    def operands(self) -> Any:
        """Casts of operands, as the analysis of noise takes them."""
        return operand_casts(*parts_in(self.module), RULES)

    @cached_property
    def predicted(self) -> Sensitivity:
        """Who adds how much noise, with no data."""
        return sensitivity(self.module.capture, RULES, self.operands)

    @cached_property
    def measured(self) -> Sensitivity:
        """The noise at each output with one contraction cast alone, on real data."""
        capture = self.module.capture
        inputs = capture.flat_inputs((), real_inputs.load(self.name)[1])
        names = output_names(capture.graph)
        found: dict[str, dict[str, float]] = {name: {} for name in names}
        for operation in self.cast:
            alone = {p: c for p, c in self.operands.items() if p[0] == operation}
            noise = measured_noise(capture, alone, inputs)
            for name in names:
                found[name][operation] = noise[name].relative
        return Sensitivity(found)

    def left_out(self, way: str, share: float) -> set[str]:
        """The contractions to leave out so that at most ``share`` of all FLOPs is in FP8."""
        if way.startswith("random"):
            order = sorted(self.cast)
            random.Random(int(way.split()[1])).shuffle(order)
            count = 0
            while self.share(set(order[:count])) > share:
                count += 1
            return set(order[:count])
        budget = self.predicted if "no data" in way else self.measured
        low, high = -20.0, 80.0
        for _ in range(40):
            bound = (low + high) / 2
            kept = self.share(set(leave_out(budget, self.flops, bound)))
            low, high = (bound, high) if kept > share else (low, bound)
        return set(leave_out(budget, self.flops, high))

    def share(self, left: set[str]) -> float:
        """The share of the FLOPs of contractions in FP8 without ``left``."""
        return flop_share(self.chosen(left))

    def chosen(self, left: set[str]) -> tuple[Choice, ...]:
        """The choices with ``left`` in BF16."""
        return tuple(c.in_format("bf16") if c.value in left else c for c in self.choices)

    def metric(self, left: set[str]) -> float:
        """The net's own metric with ``left`` in BF16."""
        recipe = self.module.recipe
        assert recipe is not None
        (part,), _ = cast_parts([self.part], recipe, RULES, made=self.chosen(left))
        self.module.take(part)
        return evaluate(self.name, self.module)


def read(path: Path) -> dict[tuple[str, str, float], Point]:
    """The points that a file has."""
    if not path.exists():
        return {}
    points = [Point(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return {(p.net, p.way, p.asked): p for p in points}


def run(name: str, path: Path) -> Iterator[Point]:
    """What a file lacks of a net; a choice that was evaluated before is not again."""
    shares, ways = FEWER.get(name, SHARES), WAYS[:3] if name in FEWER else WAYS
    missing = [(w, s) for w in ways for s in shares if (name, w, s) not in read(path)]
    if not missing:
        return
    subject = Subject(name)
    known: dict[frozenset[str], float] = {}
    for way, asked in missing:
        left = subject.left_out(way, asked)
        key = frozenset(left)
        if key not in known:
            known[key] = subject.metric(left)
        yield Point(name, way, asked, subject.share(left), known[key], len(left))


def table(name: str, points: Mapping[tuple[str, str, float], Point]) -> list[str]:
    """Share in FP8 and metric, by way, for every share that was asked for."""
    lines = [f"| at most, % | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    for asked in SHARES:
        found = [points.get((name, way, asked)) for way in WAYS]
        if any(found):
            cells = [f"{100 * p.share:.1f} %: {p.metric:.4f}" if p else "" for p in found]
            lines.append(f"| {100 * asked:g} | {' | '.join(cells)} |")
    return lines


def draw(points: Mapping[tuple[str, str, float], Point], file: Path) -> None:
    """A panel for each net."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    nets = [name for name in TARGETS if any(net == name for net, _, _ in points)]
    figure, axes = pyplot.subplots(1, len(nets), figsize=(5.5 * len(nets), 4), squeeze=False)
    for axis, name in zip(axes[0], nets, strict=True):
        for way in WAYS:
            held = sorted(
                (p.share, p.metric) for p in points.values() if (p.net, p.way) == (name, way)
            )
            style = {"marker": "o", "linestyle": ":" if "random" in way else "-"}
            axis.plot([100 * s for s, _ in held], [m for _, m in held], label=way, **style)
        axis.set_xlabel("FLOPs of contractions in FP8, %")
        axis.set_ylabel(METRICS[name].label)
        axis.set_title(name)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run what is missing of some nets, or of all; write table and figure."""
    warnings.simplefilter("ignore")
    path = RESULTS / "ptq_curve.jsonl"
    for name in sys.argv[1:] or TARGETS:
        for point in run(name, path):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
            print(point, flush=True)
    points = read(path)
    lines = [
        "# Quality against FLOPs in FP8",
        "",
        "`python -m examples.ptq_curve`",
        "",
        "`fp8-ptq` with some contractions in BF16, simulated: the share of the FLOPs of all",
        "contractions in FP8 (an attention's own never are), and the net's metric. The choice of",
        "`fp8-auto`, with no data; by the noise that each contraction alone was measured to add at",
        "the output on real data, most noise a FLOP first; and at random.",
        "",
        "![curves](ptq_curve.svg)",
    ]
    for name, target in TARGETS.items():
        lines += ["", f"## {name}: {METRICS[name].label}", "", f"To reach: {target}.", ""]
        lines += table(name, points)
    (RESULTS / "ptq_curve.md").write_text("\n".join(lines) + "\n", "utf-8")
    draw(points, RESULTS / "ptq_curve.svg")


if __name__ == "__main__":
    main()
