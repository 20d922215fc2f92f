"""Does the best learning rate of a small model serve a large one? u-μP against the standard.

    pip install -e '.[examples]' && pip install --no-deps gensim==4.4.0
    python -m examples.u_mup_transfer

A character language model of widths 64 to 512, learning rates in powers of two, three
parametrizations: PyTorch's own, ``transform(scheme="u-mup")``, and the same with ``recipe="fp8"``.
Writes ``docs/results/u_mup_transfer.md``, ``.svg`` and ``.jsonl``; a run that is in the last one is
not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import unitify
from examples.char_lm.models import LanguageModel, Shape
from examples.char_lm.text import Text
from examples.char_lm.training import train

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
WIDTHS = (64, 128, 256, 512)
STEPS, BATCH, LAST = 120, 8, 20
#: No gains, as u-μP asks for; one block of attention and feed-forward.
SHAPE = Shape("attention", "pre", depth=1, length=32, gains=False)
#: What can be seen of the characters: the rare ones would be most of a head.
VOCABULARY = 128


@dataclass(frozen=True)
class Parametrization:
    """How the model of a width is made. ``exponents``: log2 of the learning rates to try."""

    label: str
    scheme: str
    recipe: str | None
    exponents: tuple[int, ...]


PARAMETRIZATIONS = (
    Parametrization("standard", "none", None, (-10, -9, -8, -7, -6, -5, -4)),
    Parametrization("u-μP", "u-mup", None, (-3, -2, -1, 0, 1, 2)),
    Parametrization("u-μP in FP8", "u-mup", "fp8,simulate=true", (-3, -2, -1, 0, 1, 2)),
)


@dataclass(frozen=True)
class Run:
    """Bits per character over the last steps of a training at learning rate 2^``exponent``."""

    label: str
    width: int
    exponent: int
    seed: int
    bits: float
    seconds: float


def build(made: Parametrization, width: int, seed: int, batch: tuple[Tensor, Tensor]) -> nn.Module:
    """The model of a width, ready to train."""
    torch.manual_seed(seed)
    model = LanguageModel(replace(SHAPE, width=width), VOCABULARY)
    if made.scheme == "none":
        return model
    options: dict[str, Any] = {"scheme": made.scheme, "recipe": made.recipe, "verify": False}
    return unitify.transform(model, batch, **options)


def batches(text: Text, seed: int) -> list[tuple[Tensor, Tensor]]:
    """What every model of a seed is trained on; characters beyond the vocabulary are one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [text.batch(BATCH, SHAPE.length, generator) for _ in range(STEPS)]
    return [(a.clamp(max=VOCABULARY - 1), b.clamp(max=VOCABULARY - 1)) for a, b in drawn]


def run(made: Parametrization, width: int, exponent: int, seed: int, text: Text) -> Run:
    """One training."""
    started = time.perf_counter()
    data = batches(text, seed)
    module = build(made, width, seed, data[0])
    options = {"lr": 2.0**exponent, "weight_decay": 0.0, "betas": (0.9, 0.98)}
    optimizer = AdamW(unitify.optim.param_groups(module, AdamW, **options))
    losses: list[float] = []
    train(
        module, optimizer, data.__getitem__, steps=STEPS,
        after_step=lambda _step, _schedule, loss: losses.append(loss),
    )  # fmt: skip
    bits = mean(losses[-LAST:]) / math.log(2)
    seconds = round(time.perf_counter() - started, 1)
    return Run(made.label, width, exponent, seed, bits if math.isfinite(bits) else 99.0, seconds)


def done(path: Path) -> dict[tuple[str, int, int, int], Run]:
    """The runs that a file has."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    return {(r.label, r.width, r.exponent, r.seed): r for r in runs}


def curve(runs: Sequence[Run], label: str, width: int) -> dict[int, float]:
    """log2 of the learning rate → bits per character, over the seeds."""
    held: dict[int, list[float]] = {}
    for r in runs:
        if (r.label, r.width) == (label, width):
            held.setdefault(r.exponent, []).append(r.bits)
    return {exponent: mean(bits) for exponent, bits in sorted(held.items())}


def optimum(points: dict[int, float]) -> float:
    """log2 of the best learning rate, between the grid's points: a parabola through three."""
    best = min(points, key=points.__getitem__)
    if best - 1 not in points or best + 1 not in points:
        return float(best)
    low, middle, high = (points[best + i] for i in (-1, 0, 1))
    return best + 0.5 * (low - high) / (low - 2 * middle + high)


def table(runs: Sequence[Run]) -> str:
    """Markdown: the optimum of every width, and what a transferred rate costs."""
    seeds = len({r.seed for r in runs})
    lines = [
        "# Does the best learning rate transfer?",
        "",
        "`python -m examples.u_mup_transfer`. A character language model (one block, no trainable",
        f"gains), {STEPS} steps of AdamW on {BATCH} × {SHAPE.length} characters, {seeds} seed(s);",
        f"bits per character of the last {LAST} training batches. `lr*` is the best rate, by a",
        "parabola through three points; *transfer* is what the best rate of width 64 on the grid",
        "loses against a width's own.",
        "",
        "![loss against learning rate](u_mup_transfer.svg)",
        "",
        "| parametrization | width | log2 lr* | best bits | transfer |",
        "|---|---|---|---|---|",
    ]
    for made in PARAMETRIZATIONS:
        first = curve(runs, made.label, WIDTHS[0])
        for width in WIDTHS:
            points = curve(runs, made.label, width)
            if not points or not first:
                continue
            borrowed = points.get(min(first, key=first.__getitem__), math.nan)
            best = min(points.values())
            lines.append(
                f"| {made.label} | {width} | {optimum(points):+.2f} | {best:.3f} | "
                f"{borrowed - best:+.3f} |"
            )
    lines += ["", *_summary(runs)]
    return "\n".join(lines) + "\n"


def _summary(runs: Sequence[Run]) -> list[str]:
    found = []
    for made in PARAMETRIZATIONS:
        held = {w: curve(runs, made.label, w) for w in WIDTHS}
        best = [optimum(points) for points in held.values() if points]
        if len(best) > 1:
            shift = best[-1] - best[0]
            found.append(f"- {made.label}: the optimum moves {shift:+.2f} octaves.")
    return found


def draw(runs: Sequence[Run], path: Path) -> None:
    """One panel a parametrization, one curve a width."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "unitify"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(PARAMETRIZATIONS), figsize=(10, 3.6), sharey=True, layout="constrained"
    )
    colors = ("#a6cee3", "#4f9bcb", "#1f5f9e", "#0b2e59")
    for axes, made in zip(panels, PARAMETRIZATIONS, strict=True):
        for width, color in zip(WIDTHS, colors, strict=True):
            points = curve(runs, made.label, width)
            if points:
                bits = [min(b, 8.0) for b in points.values()]
                axes.plot(list(points), bits, "o-", color=color, label=f"width {width}")
                best = min(points, key=points.__getitem__)
                axes.plot([best], [points[best]], "*", color=color, markersize=14)
        axes.set_title(made.label)
        axes.set_xlabel("log2 of the learning rate")
    panels[0].set_ylabel("bits per character, last steps")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="parametrizations whose name holds this")
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "u_mup_transfer.jsonl"
    text = Text.read()
    for seed in range(options.seeds):
        for width in options.widths:
            for made in PARAMETRIZATIONS:
                for exponent in made.exponents if options.only in made.label else ():
                    if (made.label, width, exponent, seed) in done(path):
                        continue
                    found = run(made, width, exponent, seed, text)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(asdict(found)) + "\n")
                    print(found, flush=True)
    runs = list(done(path).values())
    (RESULTS / "u_mup_transfer.md").write_text(table(runs), "utf-8")
    draw(runs, RESULTS / "u_mup_transfer.svg")
    print(table(runs))


if __name__ == "__main__":
    main()
