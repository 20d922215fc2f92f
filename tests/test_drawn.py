"""Noise on drawn inputs: what is drawn, and that it foretells what data show."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_noise import BAND, ELEMENTS, captured, casts, measured
from test_stated import Trained
from torch import Tensor, nn

from examples.noise import drawn_noise
from unitify.analysis.formulas import formula_values
from unitify.capture.whole import Capture, capture
from unitify.formats.table import E4M3
from unitify.noise.drawn_inputs import drawn_inputs
from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import OperandCast
from unitify.operations.dimensions import evaluate
from unitify.operations.operation import Operation
from unitify.operations.rule_table import load_rules
from unitify.rulebook import calls

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


def token_model() -> tuple[Capture, Tensor]:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(30, 16), nn.Linear(16, 4)

        def forward(self, ids: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
            y: Tensor = self.head(self.table(ids.transpose(0, 1)) * mask.T.unsqueeze(-1) * scale)
            return y

    torch.manual_seed(0)
    ids, mask = torch.full((4, 50), 7), torch.arange(200).reshape(4, 50) % 3
    return capture(Tokens(), (ids, mask, 2 + torch.rand(50, 4, 1)), {}), ids


def test_tokens_are_drawn_and_masks_are_not() -> None:
    held, ids = token_model()
    tokens, mask, scale = drawn_inputs(held, RULES, seed=0)
    assert tokens.shape == ids.shape
    assert int(tokens.min()) == 0
    assert int(tokens.max()) == 29
    assert torch.equal(mask, held.example[1])
    assert float(scale.mean()) == pytest.approx(float(held.example[2].mean()), rel=0.05)
    assert not torch.equal(scale, held.example[2])


def test_the_contents_of_the_example_do_not_count() -> None:
    held, ids = token_model()
    other = replace(held, example=[(ids + 5) % 30, *held.example[1:]])
    cast = {("linear", "input", 0): OperandCast(E4M3)}
    assert drawn_noise(held, RULES, cast) == drawn_noise(other, RULES, cast)


@pytest.mark.parametrize("name", sorted(n for n, r in RULES.items() if r.below))
def test_a_row_says_how_many_rows_there_are_to_pick_from(name: str) -> None:
    """The last row can be read, the one behind it cannot."""
    rule = RULES[name]
    call = calls.call(rule, calls.drawn(rule, rule.sample, 0, torch.float32))
    for operand in rule.below:
        count = int(call.tensors["weight_operand"].shape[0])
        operation = Operation(call.node, {})
        assert bounds(operation, name)[operand] == count
        indices = call.tensors[f"{operand}_operand"]
        indices.fill_(count - 1)
        calls.run(call.capture.graph, call.tensors, 0)
        indices.fill_(count)
        with pytest.raises((IndexError, RuntimeError)):
            calls.run(call.capture.graph, call.tensors, 0)


def bounds(operation: Operation, name: str) -> dict[str, float]:
    values = formula_values(operation, RULES[name], {})
    return {operand: evaluate(rows, values) for operand, rows in RULES[name].below.items()}


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
