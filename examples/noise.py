"""Noise of casts: predicted with no data, by a run on drawn inputs, against measured.

    python -m examples.noise

writes ``docs/results/noise.md``, for small models of every kind and, on real data, for pretrained
nets. Casts are those of ``fp8`` without attention's own contractions: E4M3 for the operands of all
others and of recurrent layers.
"""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples import real_inputs
from examples.estimates import LISTED
from examples.nets import NETS
from unitify.analysis.analyze import analyze
from unitify.capture.execution import unchanged
from unitify.capture.outline import drawn_inputs, outline_of
from unitify.capture.whole import Capture, capture
from unitify.noise.measured import PairRunner, ValueNoise, measured_noise, output_names
from unitify.noise.operand_casts import OperandCast, operand_casts
from unitify.noise.running_statistics import toward_running_statistics
from unitify.part import Part
from unitify.plan.planner import plan
from unitify.recipe.cast import Cast, Place
from unitify.recipe.choices import Choice
from unitify.rulebook.contractions import contraction_operands
from unitify.rulebook.rule_table import RuleTable, load_rules
from unitify.rulebook.schema import operation_name

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import zoo  # noqa: E402

#: Fewer elements have no RMS to speak of.
ELEMENTS = 64
BAND = 3.0
HEAD = (
    "model", "values", "≤ 3 dB", "contractions", "≤ 3 dB", "median error", "outputs: measured",
    "drawn",
)  # fmt: skip


def cases() -> Iterator[tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """Small models in train mode, then pretrained nets in eval mode, on real data."""
    for name in LISTED:
        yield name, *zoo.build(name)
    for name, net in NETS.items():
        if net.folder is not None:
            model, inputs = real_inputs.load(name)
            yield f"{name} (pretrained)", model, (), inputs


def drawn_noise(
    capture: Capture, rules: RuleTable, casts: Mapping[Place, OperandCast]
) -> dict[str, ValueNoise]:
    """RMS of every floating value and of the error that ``casts`` leave in it, on drawn inputs."""
    args, _ = drawn_inputs(outline_of(tuple(capture.example), {}), torch.device("cpu"))
    runner = PairRunner(capture, casts, toward_running_statistics(capture, rules))
    with torch.no_grad(), unchanged(capture.model):
        runner.run(*args)
    return runner.found


def row(
    name: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """One line of the table."""
    rules = load_rules()
    held = capture(model, args, kwargs)
    scales = plan(held, analyze(held, rules).estimates, rules)
    contractions = tuple(
        Choice(
            node.name,
            operation_name(node),
            tuple(
                Cast((node.name, argument, index), operand.name, "e4m3")
                for argument, index, operand in contraction_operands(rule, node)
            ),
            is_contraction=True,
        )
        for node in held.graph.nodes
        if (rule := rules.get(operation_name(node))) and rule.casts and not rule.forward
    )
    casts = operand_casts(Part("", held, scales, held.graph, choices=contractions), rules)
    measured = {
        n: v
        for n, v in measured_noise(held, casts).items()
        if v.elements >= ELEMENTS and v.error and math.isfinite(v.signal)
    }
    drawn = drawn_noise(held, rules, casts)
    apart = differences(drawn, measured)
    outputs = [n for n in output_names(held.graph) if n in measured]
    return (
        name,
        str(len(measured)),
        share(apart.values()),
        str(sum(n in contractions for n in measured)),
        share(x for n, x in apart.items() if n in contractions),
        f"{statistics.median(apart.values()):+.1f}" if apart else "",
        *(", ".join(f"{found[n].sqnr:.1f}" for n in outputs) for found in (measured, drawn)),
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

Signal to quantization noise with the operands of every contraction cast to E4M3 (attention's own
aside), at the scales of the plan by analysis: predicted with no data by a run on drawn inputs,
against measured, which is on real data for pretrained nets. Shares in percent of values (and of the
contractions among them) of at least {ELEMENTS} elements that are predicted within {BAND:g} dB of
measured; errors are predicted minus measured, in dB: above zero, it is too good. Outputs in dB.

{text}
""", "utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
