"""A learning rate high enough to move the scales, with and without a rebase.

    python -m examples.char_lm.drift

The attention model of ``examples.train_char_lm`` at a hundred times its learning rate: float32,
FP8 at the scales that were chosen before the first step, and FP8 rebased every 25 steps. A monitor
reads the run. Writes ``docs/results/scale_drift.md``, ``.svg`` and ``.jsonl``; a few minutes.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import unitify
from examples.char_lm.models import Shape
from examples.char_lm.text import Text
from examples.char_lm.training import BATCH, Precision, build, held_out_bits, optimiser, train

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
SHAPE = Shape("attention", "pre")
OPTIONS: dict[str, Any] = {"lr": 0.3, "weight_decay": 0.01}
STEPS, EVERY, READ, SEEDS = 200, 25, 10, (0, 1, 2)
#: Label → recipe, and whether it is rebased.
KINDS: dict[str, tuple[str | None, bool]] = {
    "float32": (None, False),
    "FP8": ("fp8,simulate=true", False),
    "FP8, rebased": ("fp8,simulate=true", True),
}


@dataclass(frozen=True)
class Run:
    """One training, and at every step that was read the worst of the gradients that are cast.

    ``distance``: of the gradient farthest from unit scale, |log2 RMS|; ``lost``: the largest share
    of one that underflows.
    """

    kind: str
    seed: int
    bits: float
    losses: list[float]
    steps: list[int]
    distance: list[float]
    lost: list[float]


def run(kind: str, seed: int, text: Text) -> Run:
    """Train, read, and rebase where the kind says so."""
    recipe, is_rebased = KINDS[kind]
    module = build(SHAPE, Precision(kind, recipe), seed, text)
    generator = torch.Generator().manual_seed(seed)
    optimizer = optimiser(module, **OPTIONS)
    monitor = None if recipe is None else unitify.monitor(module, every=READ)
    made = Run(kind, seed, 0.0, [], [], [], [])

    def after_step(step: int, schedule: Any, loss: float) -> None:
        made.losses.append(round(loss, 4))
        record = None if monitor is None else monitor.latest
        if record is not None and record.step == step:
            cast = [r for r in record.backward.values() if r.underflow is not None and r.rms]
            made.steps.append(step)
            made.distance.append(round(max(abs(math.log2(r.rms)) for r in cast), 2))
            made.lost.append(round(max(r.underflow or 0.0 for r in cast), 4))
        if is_rebased and (step + 1) % EVERY == 0 and step + 1 < STEPS:
            batch = text.batch(BATCH, SHAPE.length, torch.Generator().manual_seed(step))
            unitify.rebase_(module, optimizer, [batch], scheduler=schedule)

    train(
        module, optimizer,
        lambda _: text.batch(BATCH, SHAPE.length, generator),
        steps=STEPS, after_step=after_step,
    )  # fmt: skip
    if monitor is not None:
        monitor.close()
    return Run(**{**asdict(made), "bits": held_out_bits(module, SHAPE, text)})


def table(runs: Sequence[Run]) -> str:
    """Bits per character, and the worst readings of the second half of the training."""
    lines = [
        "# Scale drift",
        "",
        "    python -m examples.char_lm.drift",
        "",
        f"A small attention model, AdamW with learning rate {OPTIONS['lr']} (a hundred times what",
        f"it wants), {STEPS} steps, seeds {', '.join(map(str, SEEDS))}. *Farthest*: |log2 RMS| as",
        "stored, of the gradient farthest from unit scale among those cast to E5M2; *lost*:",
        "the largest share of one that E5M2 holds as zero or as a subnormal number. Both are the",
        f"median of the readings after step {STEPS // 2}.",
        "",
        "![bits, distance and share lost](scale_drift.svg)",
        "",
        "| run | bits per character | each seed | farthest | lost |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        own = [r for r in runs if r.kind == kind]
        late = [i for r in own[:1] for i, step in enumerate(r.steps) if step >= STEPS // 2]
        cells = [kind, f"{mean(r.bits for r in own):.3f}", ", ".join(f"{r.bits:.3f}" for r in own)]
        for name in ("distance", "lost"):
            values = sorted(getattr(r, name)[i] for r in own for i in late)
            form = "{:.1f}" if name == "distance" else "{:.0%}"
            cells.append(form.format(values[len(values) // 2]) if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Three panels over the steps: training loss, farthest gradient, share lost; seed by seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "unitify"
    from matplotlib import pyplot

    colours = dict(zip(KINDS, ("#000000", "#d55e00", "#0072b2"), strict=True))
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for made in runs:
        label = made.kind if made.seed == SEEDS[0] else None
        colour = colours[made.kind]
        smooth = [
            mean(made.losses[max(0, i - 9) : i + 1]) / math.log(2) for i in range(len(made.losses))
        ]
        panels[0].plot(smooth, color=colour, alpha=0.7, label=label)
        panels[1].plot(made.steps, made.distance, color=colour, alpha=0.7)
        panels[2].plot(made.steps, [100 * share for share in made.lost], color=colour, alpha=0.7)
    titles = (
        "training loss, bits per character",
        "farthest cast gradient, |log2 RMS|",
        "largest share of a gradient lost, %",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step")
    panels[0].set_ylim(3.5, 8)
    panels[0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = Text.read()
    runs = []
    with (RESULTS / "scale_drift.jsonl").open("w", encoding="utf-8") as file:
        for seed in SEEDS:
            for kind in KINDS:
                runs.append(run(kind, seed, text))
                print(f"{kind:14} seed {seed}: {runs[-1].bits:.3f} bits", flush=True)
                file.write(json.dumps(asdict(runs[-1])) + "\n")
    (RESULTS / "scale_drift.md").write_text(table(runs), "utf-8")
    draw(runs, RESULTS / "scale_drift.svg")
    print(table(runs))


if __name__ == "__main__":
    main()
