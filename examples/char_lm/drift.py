"""Learning rates high enough to move the scales, with and without a rebase.

    pip install -e '.[examples]' && pip install --no-deps gensim==4.4.0
    python -m examples.char_lm.drift

The attention model of ``examples.train_char_lm`` at a hundred times and at three hundred times its
learning rate: float32, FP8 at the scales that were chosen before the first step, and FP8 rebased
every 25 steps. A monitor reads the run. Writes ``docs/results/scale_drift.md``, ``.svg`` and
``.jsonl``; a run that is in the last one is not run again. About ten minutes of one core.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

import unitify
from examples.char_lm.models import Shape
from examples.char_lm.text import Text
from examples.char_lm.training import BATCH, Precision, build, held_out_bits, optimizer_for, train

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
SHAPE = Shape("attention", "pre")
RATES, WEIGHT_DECAY = (0.3, 1.0), 0.01
STEPS, EVERY, READ, SEEDS = 200, 25, 10, (0, 1, 2)
#: Label → recipe, and whether it is rebased.
KINDS: dict[str, tuple[str | None, bool]] = {
    "float32": (None, False),
    "FP8": ("fp8,simulate=true", False),
    "FP8, rebased": ("fp8,simulate=true", True),
}


@dataclass(frozen=True)
class Run:
    """One training, and at every step that was read what became of the gradients that are cast.

    ``distance``: |log2 RMS| of the one farthest from unit scale; ``lost``: the share of one that
    underflows, mean of all.
    """

    rate: float
    kind: str
    seed: int
    bits: float
    losses: list[float]
    steps: list[int]
    distance: list[float]
    lost: list[float]


def run(rate: float, kind: str, seed: int, text: Text) -> Run:
    """Train, read, and rebase where the kind says so."""
    recipe, is_rebased = KINDS[kind]
    module = build(SHAPE, Precision(kind, recipe), seed, text)
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimizer_for(module, lr=rate, weight_decay=WEIGHT_DECAY)
    monitor = None if recipe is None else unitify.monitor(module, every=READ)
    made = Run(rate, kind, seed, 0.0, [], [], [], [])

    def after_step(step: int, schedule: Any, loss: float) -> None:
        made.losses.append(round(loss, 4))
        record = None if monitor is None else monitor.latest
        if record is not None and record.step == step:
            cast = [r for r in record.backward.values() if r.underflow is not None and r.rms]
            made.steps.append(step)
            is_finite = all(math.isfinite(r.rms) for r in cast)
            farthest = max(abs(math.log2(r.rms)) for r in cast) if is_finite else math.nan
            lost = mean(r.underflow or 0.0 for r in cast) if is_finite else math.nan
            made.distance.append(round(farthest, 2))
            made.lost.append(round(lost, 4))
        if is_rebased and (step + 1) % EVERY == 0 and step + 1 < STEPS:
            batch = text.batch(BATCH, SHAPE.length, torch.Generator().manual_seed(step))
            unitify.rebase_(module, [batch])

    train(
        module, optimizer,
        lambda _: text.batch(BATCH, SHAPE.length, generator),
        steps=STEPS, after_step=after_step,
    )  # fmt: skip
    if monitor is not None:
        monitor.close()
    return Run(**{**asdict(made), "bits": held_out_bits(module, SHAPE, text)})


def table(runs: Sequence[Run]) -> str:
    """Bits per character, and the median readings of the second half of the training."""
    lines = [
        "# Scale drift",
        "",
        "    python -m examples.char_lm.drift",
        "",
        "A small attention model, AdamW at a hundred times and more of the learning rate that it",
        f"wants, {STEPS} steps; every seed that all runs of a learning rate have.",
        "*Farthest*: |log2 RMS| as stored, of the gradient farthest from unit scale among those",
        "cast to E5M2; *lost*: the share of one that E5M2 holds as zero or as a subnormal number,",
        f"mean of all. Both are the median of the readings after step {STEPS // 2}. nan: diverged.",
        "At the higher rate nothing much is learnt, and seeds differ more than rows. What diverges",
        "there does so in attention: at logits of 1e9, between which float32 leaves gaps of 64,",
        "torch's backward kernel takes exp(logit - logsumexp) again and finds infinities.",
        "",
        "![loss, distance and share lost](scale_drift.svg)",
        "",
        "| learning rate | run | bits per character | each seed | farthest | lost |",
        "|---|---|---|---|---|---|",
    ]
    for rate, kind in product(RATES, KINDS):
        seeds = [{r.seed for r in runs if (r.rate, r.kind) == (rate, k)} for k in KINDS]
        own = [r for r in runs if (r.rate, r.kind) == (rate, kind)]
        own = [r for r in own if r.seed in set.intersection(*seeds)]
        if not own:
            continue
        each = ", ".join(f"{r.bits:.3f}" for r in own)
        cells = [f"{rate}", kind, f"{mean(r.bits for r in own):.3f}", each]
        for name, form in (("distance", "{:.1f}"), ("lost", "{:.0%}")):
            late = [v for r in own for s, v in zip(r.steps, getattr(r, name), strict=True)
                    if s >= STEPS // 2 and math.isfinite(v)]  # fmt: skip
            cells.append(form.format(median(late)) if late else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Run], path: Path) -> None:
    """A row a rate, over the steps: training loss, farthest gradient, share lost; seed by seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "unitify"
    from matplotlib import pyplot

    colors = dict(zip(KINDS, ("#000000", "#d55e00", "#0072b2"), strict=True))
    figure, rows = pyplot.subplots(len(RATES), 3, figsize=(11, 6.4), layout="constrained")
    for rate, panels in zip(RATES, rows, strict=True):
        for made in (r for r in runs if r.rate == rate):
            style = {"color": colors[made.kind], "alpha": 0.7}
            bits = [loss / math.log(2) for loss in made.losses]
            label = made.kind if made.seed == SEEDS[0] else None
            panels[0].plot(bits, **style, label=label, linewidth=0.8)
            panels[1].plot(made.steps, made.distance, **style)
            panels[2].plot(made.steps, [100 * share for share in made.lost], **style)
        titles = (
            f"learning rate {rate}: bits per character",
            "farthest cast gradient, |log2 RMS|",
            "share of a gradient lost, mean, %",
        )
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(title, fontsize="medium")
            axes.set_xlabel("step")
        panels[0].set_yscale("log")
    rows[0][0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "scale_drift.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    done = {(r.rate, r.kind, r.seed) for r in runs}
    text = Text.read()
    for seed, rate, kind in product(SEEDS, RATES, KINDS):
        if (rate, kind, seed) in done:
            continue
        runs.append(run(rate, kind, seed, text))
        print(f"{rate} {kind:14} seed {seed}: {runs[-1].bits:.3f} bits", flush=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(runs[-1])) + "\n")
    (RESULTS / "scale_drift.md").write_text(table(runs), "utf-8")
    draw(runs, RESULTS / "scale_drift.svg")
    print(table(runs))


if __name__ == "__main__":
    main()
