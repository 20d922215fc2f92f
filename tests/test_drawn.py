"""Noise on drawn inputs predicts what data show."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from test_noise import ELEMENTS, captured, casts
from test_running_statistics import Trained
from torch import Tensor

from examples.noise import drawn_noise
from unitify.capture.whole import capture
from unitify.formats.table import E4M3
from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import OperandCast
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()
SEEDS, LIMIT = 32, 4.0


def z_score(drawn: float, measured: list[float]) -> float:
    """Of one draw against others of the same kind, whose mean varies, too."""
    deviation = statistics.stdev(measured) * math.sqrt(1 + 1 / len(measured))
    return (drawn - statistics.mean(measured)) / deviation


def redrawn(example: list[Tensor], seed: int) -> list[Tensor]:
    """Inputs of the same kind: normal numbers, and integers of the same range."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(x.shape, generator=generator)
        if x.is_floating_point()
        else torch.randint(int(x.min()), int(x.max()) + 1, x.shape, generator=generator)
        for x in example
    ]


@pytest.mark.parametrize("model", ["mlp", "residual_cnn", "llama"])
def test_drawn_inputs_predict_what_is_measured(model: str) -> None:
    """The noise of one draw is within four standard deviations of that of other inputs."""
    held, cast = captured(model), casts(model, E4M3)
    found = drawn_noise(held, RULES, cast)
    runs = [measured_noise(held, cast, redrawn(held.example, seed)) for seed in range(SEEDS)]
    scores = {
        name: z_score(found[name].sqnr, [run[name].sqnr for run in runs])
        for name, value in runs[0].items()
        if value.elements >= ELEMENTS and value.error and math.isfinite(value.signal)
    }
    assert len(scores) > 5
    assert {n: z for n, z in scores.items() if abs(z) > LIMIT} == {}


def test_statistics_of_a_trained_norm_count_more_than_random_inputs() -> None:
    """Inputs that the norm was not trained on: values are moved, errors stay."""
    torch.manual_seed(0)
    model = Trained()
    with torch.no_grad():
        model.mix.weight[:, 8:] = 0.9 * model.mix.weight[:, :8]
        model(5 * torch.randn(64, 8, 6, 6))
    held = capture(model.eval(), (torch.randn(64, 8, 6, 6),), {})
    cast = {("conv2d", "weight", 0): OperandCast(E4M3)}
    drawn = drawn_noise(held, RULES, cast)
    inputs = [redrawn(held.example, seed) for seed in range(SEEDS)]
    given = [measured_noise(held, cast, x) for x in inputs]
    trained = [measured_noise(held, cast, [5 * x]) for (x,) in inputs]
    for found, measured in (
        (drawn["conv2d"].error, [run["conv2d"].error for run in given]),
        (drawn["conv2d"].signal, [run["conv2d"].signal for run in trained]),
        (drawn["batch_norm"].signal, [run["batch_norm"].signal for run in trained]),
    ):
        assert abs(z_score(found, measured)) < LIMIT
