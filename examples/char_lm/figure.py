"""The table and the figure of the character language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from examples.char_lm.models import Shape
from examples.char_lm.training import PRECISIONS, STEPS, Run

#: Of Okabe and Ito, distinct with any color vision.
_COLORS = ("#000000", "#56b4e9", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#d55e00")


def bits_of(runs: Sequence[Run], shape: Shape, label: str) -> dict[int, float]:
    """Seed → bits per character."""
    found = [r for r in runs if (r.mixer, r.norm, r.precision) == (shape.mixer, shape.norm, label)]
    return {r.seed: r.bits for r in sorted(found, key=lambda r: r.seed)}


def excess(runs: Sequence[Run], shape: Shape, label: str) -> dict[int, float]:
    """Seed → bits per character above those of float32 with the same seed, as a share of them."""
    true = bits_of(runs, shape, PRECISIONS[0].label)
    own = bits_of(runs, shape, label)
    return {seed: bits / true[seed] - 1 for seed, bits in own.items() if seed in true}


def table(runs: Sequence[Run], shapes: Sequence[Shape]) -> str:
    """Bits per character, mean of the seeds and half their spread; excess over float32."""
    lines = [
        "# Training in FP16 and FP8",
        "",
        "    python -m examples.train_char_lm",
        "",
        "Bits per character of held-out text (Wikipedia articles, 2.5 million characters) after",
        f"{STEPS} steps of a small language model; mean over the seeds, ± half of their spread.",
        "Initialization, batches and hyperparameters are the same in every row of a model; none",
        "was chosen for a precision. *Excess*: mean of the differences to float32, each to that of",
        "the same seed. FP16 holds weights, activations and gradients in FP16, with float32 master",
        "weights; FP8 casts operands of matmuls to E4M3, gradients of their results to E5M2.",
        "",
        "![excess over float32](char_lm.svg)",
        "",
        "| model | precision | seeds | bits per character | excess | worst seed |",
        "|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        for precision in PRECISIONS:
            bits = bits_of(runs, shape, precision.label)
            if not bits:
                continue
            above = list(excess(runs, shape, precision.label).values())
            spread = (max(bits.values()) - min(bits.values())) / 2
            cells = [str(shape), precision.label, str(len(bits))]
            cells.append(f"{mean(bits.values()):.4f} ± {spread:.4f}")
            if precision.recipe is None:
                cells += ["", ""]
            else:
                cells += (
                    [f"{mean(above):+.2%}", f"{max(above, key=abs):+.2%}"] if above else ["", ""]
                )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Run], shapes: Sequence[Shape], path: Path) -> None:
    """One row a model, one mark a seed: excess over float32 in percent, on a symmetric log axis."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "unitify"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.9 * len(shapes)), layout="constrained")
    for place, (precision, color) in enumerate(zip(PRECISIONS, _COLORS, strict=True)):
        if precision.recipe is None:
            continue
        points = [
            (100 * above, row + 0.11 * (place - 3.5))
            for row, shape in enumerate(shapes)
            for above in excess(runs, shape, precision.label).values()
        ]
        xs, ys = zip(*points, strict=True) if points else ((), ())
        axes.plot(xs, ys, "o", markersize=5, color=color, label=precision.label, alpha=0.8)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.axvspan(-0.5, 0.5, color="black", alpha=0.06, linewidth=0)
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_yticks(range(len(shapes)), [str(shape) for shape in shapes])
    axes.invert_yaxis()
    axes.set_xlabel("bits per character above float32 with the same seed, % (gray: within 0.5 %)")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
