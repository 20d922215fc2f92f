"""A character language model trained in float32, FP16 and FP8: does it end at the same loss?

    pip install -e '.[examples]' && pip install --no-deps gensim==4.4.0
    python -m examples.train_char_lm

Six models (attention, convolution and recurrence, each with layer norm before and after), seven
precisions, three seeds, and the same hyperparameters for all. Writes ``docs/results/char_lm.md``,
``.svg`` and ``.jsonl``; a run that is in the last one is not run again. About an hour of one
core.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from examples.char_lm.figure import draw, table
from examples.char_lm.models import MIXERS, Shape
from examples.char_lm.text import Text
from examples.char_lm.training import PRECISIONS, Precision, Run, run

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
SEEDS = (0, 1, 2)
#: One cell of a recurrence is a dozen operations at every step: one block of them is enough.
SHAPES = [
    Shape(mixer, norm, depth=1 if mixer == "recurrence" else 2)
    for mixer in MIXERS
    for norm in ("pre", "post")
]
Case = tuple[int, Shape, Precision]


def done(path: Path) -> dict[tuple[str, str, str, int], Run]:
    """The runs that a file has."""
    if not path.exists():
        return {}
    runs = [Run(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return {(r.mixer, r.norm, r.precision, r.seed): r for r in runs}


text = cache(Text.read)


def one(case: Case) -> Run:
    """One case, in a process of its own."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seed, shape, precision = case
    return run(shape, precision, seed, text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--only", default="", help="models whose name holds this")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "char_lm.jsonl"
    runs = done(path)
    cases = [
        (seed, shape, precision)
        for seed, shape, precision in product(SEEDS, SHAPES, PRECISIONS)
        if (shape.mixer, shape.norm, precision.label, seed) not in runs
        and options.only in str(shape)
    ]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(one, case) for case in cases]):
            made = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(made.as_json()) + "\n")
            case = f"{made.mixer}, {made.norm}-norm, {made.precision}, seed {made.seed}"
            print(f"{made.bits:.4f}  {case}  ({made.seconds:.0f} s)", flush=True)
    runs = done(path)
    (RESULTS / "char_lm.md").write_text(table(list(runs.values()), SHAPES), "utf-8")
    draw(list(runs.values()), SHAPES, RESULTS / "char_lm.svg")
    print((RESULTS / "char_lm.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
