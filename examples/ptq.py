"""Post-training FP8 of real nets: what it costs in the net's own metric.

    python -m examples.ptq [NET ...]

casts every operand of a matrix product or convolution to E4M3, by scales that need no data, by
measured ones, by dynamic per-tensor amax and by none, and writes ``docs/results/ptq.md``. See
``examples.nets`` and ``examples.evaluation`` for the packages to install.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import unitify
from examples.evaluation import METRICS, evaluate
from examples.nets import NETS
from examples.sqnr import VARIANTS, layer_sqnr, simulated, summary
from unitify.recipe.choices import flop_share

ROOT = Path(__file__).resolve().parents[1]

#: Label → recipe, where its scales come from, and what is changed of the recipe.
CASES: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    **{label: (*case, {}) for label, case in VARIANTS.items()},
    "unit, no data, headroom": ("fp8", "analysis", {"headroom": "predicted"}),
    "unit, measured, headroom": ("fp8", "measured", {"headroom": "measured"}),
}

#: Net → signal-to-noise ratios (dB) that every output is to keep, by what is left in BF16.
BOUNDS: Mapping[str, tuple[float, ...]] = {
    "mobilenet_v2": (5.0, 10.0, 15.0, 20.0, 25.0),
    "smollm2": (10.0, 15.0, 20.0),
}


def converted(name: str, recipe: str, scales: str = "analysis", **changes: Any) -> Any:
    """A net with the casts of a recipe, every width cast, in eval mode."""
    model, inputs = NETS[name].load()
    chosen = simulated(recipe, multiple=1, **changes)
    module = unitify.transform(model, (), inputs, verify=False, recipe=chosen, scales=scales)
    return module.eval()


def bounded(name: str) -> Iterator[str]:
    """A row for every bound of a net: the share of product FLOPs in FP8, and the metric."""
    for bound in BOUNDS.get(name, ()):
        module = converted(name, "fp8", min_sqnr=bound, headroom="predicted")
        share = flop_share(module.casts)
        yield f"| {name} | {bound:g} | {100 * share:.1f} | {evaluate(name, module):.4f} |"


def main() -> None:
    """Evaluate the nets and write the tables."""
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:] or list(METRICS)
    quality = [
        "| net | metric | float32 | " + " | ".join(CASES) + " |",
        "|---" * (3 + len(CASES)) + "|",
    ]
    noise = ["| net | layers | " + " | ".join(CASES) + " |", "|---" * (2 + len(CASES)) + "|"]
    bounds = ["| net | bound, dB | product FLOPs in FP8, % | metric |", "|---|---|---|---|"]
    for name in chosen:
        model, inputs = NETS[name].load()
        arrow = "↑" if METRICS[name].higher_is_better else "↓"
        row = [name, f"{METRICS[name].label} {arrow}", f"{evaluate(name, model):.4f}"]
        levels = []
        for recipe, scales, changes in CASES.values():
            module = converted(name, recipe, scales, **changes)
            row.append(f"{evaluate(name, module):.4f}")
            levels.append(layer_sqnr(module, (), inputs))
        quality.append("| " + " | ".join(row) + " |")
        noise.append("| " + " | ".join([name, str(len(levels[0])), *map(summary, levels)]) + " |")
        print(quality[-1], noise[-1], sep="\n", flush=True)
        for line in bounded(name):
            bounds.append(line)
            print(line, flush=True)
    if sys.argv[1:]:
        return
    lines = [
        "# Post-training FP8",
        "",
        "`python -m examples.ptq`",
        "",
        "Every operand of a matrix product, convolution or recurrent layer in E4M3, simulated.",
        "Measured scales are measured on the inputs of `examples.nets`, not on the data of",
        "the metric.",
        "",
        *quality,
        "",
        "SQNR of the layers' results in dB, accumulated from the inputs: median / worst.",
        "",
        *noise,
        "",
        '`Recipe(min_sqnr=…, headroom="predicted")`, no data: every output is to keep that ratio.',
        "",
        *bounds,
        "",
    ]
    (ROOT / "docs" / "results" / "ptq.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
