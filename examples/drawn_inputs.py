"""Scales of pretrained nets with nothing given, judged on real data; and how long they take.

    python -m examples.drawn_inputs

transforms each net by default, on inputs that are drawn, and compares the RMS that its scales
follow with those on real data, beside those of an analysis. Writes
``docs/results/drawn_inputs.md``.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from examples import evaluation, real_inputs
from examples.estimates import percent, target_loss, within, without_rounding
from examples.nets import NETS
from unitify.analysis.analyze import analyze
from unitify.capture.execution import LossFunction
from unitify.capture.islands import Recording
from unitify.diagnostics import UnitifyError
from unitify.estimates import Estimates
from unitify.measure.captured import measure
from unitify.rulebook.rule_table import load_rules

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "drawn_inputs.md"
TESTED = ("minilm", "mobilenet_v2", "crepe", "speaker_encoder")
#: Lengths of Wikipedia's text for the language model.
LENGTHS = (32, 64, 128)

Case = tuple[str, dict[str, Any], LossFunction]


def real_data(name: str) -> Iterator[Case]:
    """Label, inputs and loss of each call on real data."""
    if name == "smollm2":
        for length in LENGTHS:
            tokens = evaluation.wikipedia_tokens()[:2, :length].clone()
            yield f"{length} tokens", {"input_ids": tokens}, next_token_loss(tokens)
        return
    _, inputs = real_inputs.load(name)
    if "attention_mask" in inputs:
        # Without padding, like drawn tokens.
        length = int(inputs["attention_mask"].sum(-1).min())
        inputs = {"input_ids": inputs["input_ids"][:, :length].clone()}
    yield "", inputs, target_loss


def next_token_loss(tokens: Tensor) -> LossFunction:
    """The loss of a language model on a text [B, T]."""

    def loss(output: Any) -> Tensor:
        return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def transformed(model: nn.Module, drawn: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What each stage made, with seconds; and what was given, because the model does not say it."""
    made: dict[str, Any] = {}
    clock = time.perf_counter()

    def done(stage: str, result: Any) -> None:
        nonlocal clock
        now = time.perf_counter()
        made[stage] = (result, now - clock)
        clock = now

    try:
        unitify.transform(model, on_stage=done)
        return made, "nothing"
    except UnitifyError as error:
        if error.diagnostics[0].code not in ("U002", "U102"):
            raise
    clock = time.perf_counter()
    unitify.transform(model, example_kwargs=drawn, on_stage=done)
    return made, "random numbers"


def shares(found: Estimates, real: Estimates) -> list[str]:
    """Percent of values, and of gradients apart from their common factor, within 2 × of ``real``.

    The common factor is the median. It follows the loss and the size of the batch, and casts take
    it from the gradient that arrives.
    """
    ratios = [
        own / true
        for name, rms in real.items()
        if (own := found[name].backward) and (true := rms.backward) and math.isfinite(true)
    ]
    level = statistics.median(ratios)
    leveled = {
        name: replace(rms, backward=rms.backward / level) if rms.backward else rms
        for name, rms in found.items()
    }
    counted = within(real, leveled)
    return [percent(*counted[direction][:2]) for direction in ("forward", "backward")]


def rows(name: str) -> Iterator[list[str]]:
    """A row for each call of real data."""
    model, drawn = NETS[name].load()
    made, given = transformed(model, drawn)
    recording: Recording = made["capture"][0]
    captured = recording.parts[""]
    (part,) = made["estimate"][0].parts
    predicted = analyze(captured, load_rules()).estimates
    seconds = {stage: spent for stage, (_, spent) in made.items()}
    apart = sum(seconds.values()) - seconds["capture"]
    for label, inputs, loss in real_data(name):
        flat = captured.flat_inputs((), inputs)
        real = without_rounding(measure(captured, [flat], loss), predicted)
        yield [
            f"{name}, {label}" if label else name, given, str(len(captured.graph.nodes)),
            *shares(part.estimates, real), *shares(predicted, real),
            f"{seconds['capture']:.1f}", f"{seconds['verify']:.1f}", f"{apart:.1f}",
        ]  # fmt: skip


def main() -> None:
    """Measure every net, and write the page."""
    warnings.simplefilter("ignore")
    head = [
        "net, real data", "given", "nodes", "run, values", "run, gradients", "analysis, values",
        "analysis, gradients", "export, s", "verify, s", "all but export, s",
    ]  # fmt: skip
    lines = [
        "# Scales with nothing given",
        "",
        "`python -m examples.drawn_inputs`: `unitify.transform(model)` by default. A language model"
        " writes its own text, other nets run on random numbers; random gradients start at the"
        " outputs. Percent of values and of gradients whose RMS there (run) or by analysis is"
        " within 2 × of that on real data, with the model's loss or the distance to a random"
        " target. Gradients are compared apart from their common factor: it follows the loss and"
        " the size of the batch, and casts take it from the gradient that arrives.",
        "",
        f"| {' | '.join(head)} |",
        f"|---|---|{' --: |' * (len(head) - 2)}",
    ]
    for name in ("smollm2", *TESTED):
        for row in rows(name):
            print(" | ".join(row), flush=True)
            lines.append(f"| {' | '.join(row)} |")
    PAGE.write_text("\n".join([*lines, ""]), "utf-8")


if __name__ == "__main__":
    main()
