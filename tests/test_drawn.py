"""Noise on drawn inputs foretells what data show."""

from __future__ import annotations

import math

import pytest
import torch
from test_noise import BAND, ELEMENTS, captured, casts, measured
from test_running_statistics import Trained

from examples.noise import drawn_noise
from unitify.capture.whole import capture
from unitify.formats.table import E4M3
from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import OperandCast
from unitify.rulebook.rule_table import load_rules

RULES = load_rules()


@pytest.mark.parametrize("model", ["mlp", "residual_cnn", "llama"])
def test_drawn_inputs_foretell_what_is_measured(model: str) -> None:
    found = drawn_noise(captured(model), RULES, casts(model, E4M3))
    apart = {
        name: found[name].sqnr - value.sqnr
        for name, value in measured(model).items()
        if value.elements >= ELEMENTS and value.error and math.isfinite(value.signal)
    }
    assert len(apart) > 5
    assert {n: d for n, d in apart.items() if abs(d) > BAND} == {}


def test_statistics_of_a_trained_norm_count_more_than_random_inputs() -> None:
    """Inputs that the norm was not trained on: values are moved, errors stay."""
    torch.manual_seed(0)
    model = Trained()
    with torch.no_grad():
        model.mix.weight[:, 8:] = 0.9 * model.mix.weight[:, :8]
        model(5 * torch.randn(64, 8, 6, 6))
    held = capture(model.eval(), (torch.randn(64, 8, 6, 6),), {})
    cast = {("conv2d", "weight", 0): OperandCast(E4M3)}
    drawn, as_given = drawn_noise(held, RULES, cast), measured_noise(held, cast)
    assert drawn["conv2d"].signal == pytest.approx(5 * as_given["conv2d"].signal, rel=0.1)
    assert drawn["conv2d"].error == pytest.approx(as_given["conv2d"].error, rel=0.1)
    assert drawn["batch_norm"].signal == pytest.approx(1.0, rel=0.05)
