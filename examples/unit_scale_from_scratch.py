"""Character models from scratch, regular and unit-scaled: learning rates, sums, precisions.

    pip install -e '.[examples]' && pip install --no-deps gensim==4.4.0
    python -m examples.unit_scale_from_scratch

The sweep of Blake et al. 2023 (arXiv 2303.11257, section 6.1) in small: attention, convolution and
recurrence, norm before, after or nowhere, three residual schemes, AdamW and SGD with momentum,
learning rates in powers of two; then the best rate in FP16 without loss scaling and in FP8, and
some cases four times as long. Writes ``docs/results/unit_scale_from_scratch.md``, ``.svg`` and
``.jsonl``; a run that is in the last one is not run again, so that the sweep can be stopped and
taken up.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR

import unitify
from examples.char_lm.models import MIXERS, LanguageModel, Shape
from examples.char_lm.text import Text
from examples.char_lm.training import rate

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
STEPS, LONG, BATCH, LAST, VOCABULARY = 150, 600, 8, 30, 128
#: Label in the table → the scheme; "regular" is the model as it is, with plain sums.
SCHEMES: dict[str, unitify.UnitScheme | None] = {
    "regular": None,
    "unit, running-mean": unitify.UnitScheme(residual="running-mean"),
    "unit, fixed": unitify.UnitScheme(residual="fixed", tau=0.5),
    "unit, default": unitify.UnitScheme(residual="default"),
}
USUAL = ("regular", "unit, running-mean")
#: log2 of the learning rates, by optimizer, of regular models and of unit ones.
EXPONENTS = {
    "AdamW": (range(-10, -4), range(-7, 0)),
    "SGD": (range(-5, 3), range(-11, -3)),
}
#: Of the longer trainings, around the best rate of the short ones.
LONG_EXPONENTS = range(-8, -4), range(-5, -1)
#: (mixer, norm) of the longer trainings.
LONGER = (("attention", "pre"), ("attention", "post"), ("recurrence", "pre"))
#: Recipes of a module; a regular model is cast without scales.
PRECISIONS = {
    "FP16": ("fp16-plain", "fp16"),
    "FP8": ("fp8-plain,simulate=true", "fp8,simulate=true"),
}


@dataclass(frozen=True)
class Case:
    """A model, how it is made and trained."""

    mixer: str
    norm: str
    scheme: str
    optimizer: str
    precision: str = "float32"
    depth: int = 1
    steps: int = STEPS

    def __str__(self) -> str:
        longer = f", {self.steps} steps" if self.steps != STEPS else ""
        return f"{self.mixer}, {self.norm}, depth {self.depth}, {self.optimizer}{longer}"

    @property
    def exponents(self) -> range:
        """log2 of the learning rates to try."""
        table = LONG_EXPONENTS if self.steps == LONG else EXPONENTS[self.optimizer]
        return table[SCHEMES[self.scheme] is not None]


@dataclass(frozen=True)
class Run:
    """Bits per character over the last steps, at learning rate 2^``exponent``."""

    case: Case
    exponent: int
    seed: int
    bits: float
    seconds: float


def cases(full: bool) -> list[Case]:
    """The cases; not ``full``: every scheme on pre-norm attention, two of them on the others."""
    found = []
    for optimizer, mixer, norm, scheme in product(
        ("AdamW", "SGD"), MIXERS, ("pre", "post", "none"), SCHEMES
    ):
        is_first = mixer == "attention" and norm == "pre"
        is_usual = scheme in USUAL and optimizer == "AdamW"
        if full or is_first or is_usual:
            found.append(Case(mixer, norm, scheme, optimizer))
    found += [Case("attention", "pre", scheme, "AdamW", depth=2) for scheme in SCHEMES]
    return found + [
        Case(mixer, norm, scheme, "AdamW", steps=LONG)
        for (mixer, norm), scheme in product(LONGER, USUAL)
    ]


def build(case: Case, seed: int, batch: tuple[Tensor, Tensor]) -> nn.Module:
    """The model of a case, ready to train."""
    torch.manual_seed(seed)
    shape = Shape(case.mixer, case.norm, depth=case.depth, length=_length(case))
    model = LanguageModel(shape, VOCABULARY)
    scheme = SCHEMES[case.scheme]
    recipes = PRECISIONS.get(case.precision)
    recipe = recipes[scheme is not None] if recipes else None
    if scheme is None and recipe is None:
        return model
    return unitify.transform(model, batch, scheme=scheme or "preserve", recipe=recipe, verify=False)


def _length(case: Case) -> int:
    """A recurrence is a dozen operations at every step."""
    return 16 if case.mixer == "recurrence" else 32


def run(case: Case, exponent: int, seed: int, text: Text) -> Run:
    """One training."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    drawn = [text.batch(BATCH, _length(case), generator) for _ in range(case.steps)]
    data = [(a.clamp(max=VOCABULARY - 1), b.clamp(max=VOCABULARY - 1)) for a, b in drawn]
    module = build(case, seed, data[0])
    kind: Any = AdamW if case.optimizer == "AdamW" else SGD
    own = {"weight_decay": 0.0} if kind is AdamW else {"momentum": 0.9}
    groups = unitify.optim.param_groups(module, kind, lr=2.0**exponent, **own)
    optimizer = kind(groups)
    schedule = LambdaLR(optimizer, lambda step: rate(step, case.steps))
    losses: list[float] = []
    for batch in data:
        optimizer.zero_grad()
        loss = module(*batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    bits = mean(losses[-LAST:]) / math.log(2)
    seconds = round(time.perf_counter() - started, 1)
    return Run(case, exponent, seed, bits if math.isfinite(bits) else 99.0, seconds)


def done(path: Path) -> list[Run]:
    """The runs that a file has."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    held = [json.loads(line) for line in lines]
    return [Run(**{**one, "case": Case(**one["case"])}) for one in held]


def curve(runs: Sequence[Run], case: Case) -> dict[int, float]:
    """log2 of the learning rate → bits per character, over the seeds."""
    held: dict[int, list[float]] = {}
    for one in runs:
        if one.case == case:
            held.setdefault(one.exponent, []).append(one.bits)
    return {exponent: mean(bits) for exponent, bits in sorted(held.items())}


def wanted(runs: Sequence[Run], full: bool, seeds: int) -> Iterator[tuple[Case, int, int]]:
    """What is to be run: the sweep with one seed, then the best rates with all seeds."""
    have = {(one.case, one.exponent, one.seed) for one in runs}
    for case in cases(full):
        missing = [(case, e, 0) for e in case.exponents if (case, e, 0) not in have]
        yield from missing
        if missing:
            continue
        points = curve([one for one in runs if one.seed == 0], case)
        best = min(points, key=points.__getitem__)
        for seed in range(seeds):
            for precision in ("float32", *(PRECISIONS if case.steps == STEPS else ())):
                cast = replace(case, precision=precision)
                if (cast, best, seed) not in have:
                    yield cast, best, seed


def table(runs: Sequence[Run], full: bool) -> str:
    """Markdown: the best rate of every case, and bits per character in each precision."""
    lines = [
        "# Unit scaling from scratch",
        "",
        "`python -m examples.unit_scale_from_scratch`. Width 64, "
        f"{STEPS} steps of {BATCH} sequences; bits per character",
        f"of the last {LAST} training batches, mean over seeds ± half their range. FP16 is without",
        "loss scaling: weights, activations and gradients are cast.",
        "",
        "![bits against learning rate](unit_scale_from_scratch.svg)",
        "",
        "| model | scheme | log2 lr* | float32 | FP16 | FP8 |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases(full):
        points = curve([one for one in runs if one.seed == 0], case)
        if not points:
            continue
        best = min(points, key=points.__getitem__)
        cells = []
        for precision in ("float32", *PRECISIONS):
            cast = replace(case, precision=precision)
            bits = [one.bits for one in runs if (one.case, one.exponent) == (cast, best)]
            spread = (max(bits) - min(bits)) / 2 if len(bits) > 1 else math.nan
            cells.append(_cell(bits, spread))
        lines.append(f"| {case} | {case.scheme} | {best:+d} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(bits: Sequence[float], spread: float) -> str:
    if not bits:
        return ""
    if max(bits) > 50:
        return "diverges"
    return f"{mean(bits):.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")


def draw(runs: Sequence[Run], full: bool, path: Path) -> None:
    """One panel a model and optimizer, one curve a scheme."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "unitify"
    from matplotlib import pyplot

    models = list(dict.fromkeys(str(case) for case in cases(full)))
    rows = -(-len(models) // 4)
    figure, panels = pyplot.subplots(
        rows, 4, figsize=(11, 2.3 * rows), sharey=True, layout="constrained", squeeze=False
    )
    colors = dict(zip(SCHEMES, ("#888888", "#08519c", "#e6550d", "#31a354"), strict=True))
    for axes, model in zip(panels.flat, models, strict=False):
        for case in cases(full):
            points = curve(runs, case) if str(case) == model else {}
            if points:
                bits = [min(b, 7.0) for b in points.values()]
                axes.plot(list(points), bits, "o-", color=colors[case.scheme], markersize=3)
        axes.set_title(model, fontsize=7)
    for axes in list(panels.flat)[len(models) :]:
        axes.set_axis_off()
    handles = [pyplot.Line2D([], [], color=c, label=s) for s, c in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    figure.supxlabel("log2 of the learning rate", fontsize="small")
    figure.supylabel("bits per character", fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every scheme on every model")
    parser.add_argument("--seeds", type=int, default=2, help="at the best rates")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    path, text, started = RESULTS / "unit_scale_from_scratch.jsonl", Text.read(), time.monotonic()
    # Two rounds: what is best is known after the first.
    for _ in range(2):
        for case, exponent, seed in list(wanted(done(path), options.full, options.seeds)):
            if time.monotonic() - started > 60 * options.minutes:
                break
            found = run(case, exponent, seed, text)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            print(found, flush=True)
    runs = done(path)
    (RESULTS / "unit_scale_from_scratch.md").write_text(table(runs, options.full), "utf-8")
    draw(runs, options.full, RESULTS / "unit_scale_from_scratch.svg")
    print(table(runs, options.full))


if __name__ == "__main__":
    main()
