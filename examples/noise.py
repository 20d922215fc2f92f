"""Noise of casts: predicted with no data, by rules and by drawn inputs, against measured.

    python -m examples.noise

writes ``docs/results/noise.md``, for small models of every kind and, on real data, for pretrained
nets. Casts are those of ``fp8`` without attention's own products: E4M3 for the operands of every
product and recurrent layer.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from examples import real_inputs
from examples.estimates import LISTED
from examples.nets import NETS
from unitify.analysis.analyse import analyse
from unitify.capture.whole import capture
from unitify.noise.drawn import drawn_noise
from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import operand_casts
from unitify.noise.predict import ValueNoise, output_names, predict_noise
from unitify.operations.rule_table import load_rules
from unitify.operations.schema import operation_name
from unitify.plan.planner import plan

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import zoo  # noqa: E402

#: Fewer elements have no RMS to speak of.
ELEMENTS = 64
BAND = 3.0
HEAD = (
    "model", "values", "≤ 3 dB, drawn", "≤ 3 dB, rules", "products", "≤ 3 dB, drawn",
    "≤ 3 dB, rules", "median error, drawn", "rules", "outputs: measured", "drawn", "rules",
)  # fmt: skip


def cases() -> Iterator[tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """Small models in train mode, then pretrained nets in eval mode, on real data."""
    for name in LISTED:
        yield name, *zoo.build(name)
    for name, net in NETS.items():
        if net.folder is not None:
            model, inputs = real_inputs.load(name)
            yield f"{name} (pretrained)", model, (), inputs


def row(
    name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """One line of the table."""
    rules = load_rules()
    held = capture(model, args, kwargs)
    scales = plan(held, analyse(held, rules).estimates, rules)
    products = {
        node.name: "e4m3"
        for node in held.graph.nodes
        if (rule := rules.get(operation_name(node))) and rule.casts and not rule.forward
    }
    casts = operand_casts(held, scales, rules, products)
    measured = {
        n: v
        for n, v in measured_noise(held, casts).items()
        if v.elements >= ELEMENTS and v.error and math.isfinite(v.signal)
    }
    guesses = drawn_noise(held, rules, casts), predict_noise(held, rules, casts).values
    apart = [differences(g, measured) for g in guesses]
    outputs = [n for n in output_names(held.graph) if n in measured]
    return (
        name,
        str(len(measured)),
        *(share(d.values()) for d in apart),
        str(sum(n in products for n in measured)),
        *(share(x for n, x in d.items() if n in products) for d in apart),
        *(f"{statistics.median(d.values()):+.1f}" if d else "" for d in apart),
        ", ".join(f"{measured[n].sqnr:.1f}" for n in outputs),
        *(", ".join(f"{g[n].sqnr:.1f}" for n in outputs) for g in guesses),
    )


def differences(
    predicted: Mapping[str, ValueNoise], measured: Mapping[str, ValueNoise]
) -> dict[str, float]:
    """Predicted minus measured decibels."""
    return {n: predicted[n].sqnr - v.sqnr for n, v in measured.items()}


def share(apart: Any) -> str:
    """How many are within the band, in percent."""
    listed = list(apart)
    return f"{100 * sum(abs(d) <= BAND for d in listed) / len(listed):.0f}" if listed else ""


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    for case in cases():
        rows.append(row(*case))
        print(*rows[-1], sep=" | ", flush=True)
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    page = ROOT / "docs" / "results" / "noise.md"
    page.write_text(f"""# Noise

`python -m examples.noise`

Signal to quantisation noise with the operands of every product cast to E4M3 (attention's own
aside), at the scales of the plan by analysis: predicted with no data by a run on drawn inputs and
by rules, against measured, which is on real data for pretrained nets. Shares in percent of values
(and of the products among them) of at least {ELEMENTS} elements whose prediction is within {BAND:g}
dB of measured; errors are predicted minus measured, in dB, above zero where the prediction is too
good. Outputs in dB.

{text}
""", "utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
