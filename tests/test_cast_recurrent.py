"""Casts of recurrent layers: one operation that holds several contractions, and several results."""

from __future__ import annotations

import pytest
import torch
from conversion import parameter_scales
from torch import Tensor, nn

import unitify
from unitify.formats.table import E4M3, E5M2, quantize
from unitify.rulebook.contractions import contraction_operands
from unitify.rulebook.rule_table import load_rules
from unitify.rulebook.schema import operation_name

RULES = load_rules()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_input_and_weights_by_hand(kind: type[nn.RNNBase]) -> None:
    """Rounded near unit RMS, though the operation runs at true scale, and the input is true."""
    torch.manual_seed(0)
    model = kind(16, 32, num_layers=2)
    x = torch.randn(5, 3, 16) * 8
    module = unitify.transform(model, (x,), recipe="fp8")
    assert module.verification is not None
    assert module.verification.exact
    scales = parameter_scales(module)
    by_hand = kind(16, 32, num_layers=2)
    by_hand.load_state_dict(
        {
            name: quantize(p / scales[name].fwd, E4M3) * scales[name].fwd if p.dim() > 1 else p
            for name, p in model.named_parameters()
        }
    )
    assert all(scales[n].fwd < 1 for n, p in model.named_parameters() if p.dim() > 1)
    assert torch.equal(module(x)[0], by_hand(quantize(x / 8, E4M3) * 8)[0])


class Last(nn.Module):
    """Two results of a recurrent layer, of which one is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, last = self.recurrent(x)
        return hidden, last + hidden.mean(0)


def test_gradients_are_rounded_where_they_reach_the_results() -> None:
    torch.manual_seed(0)
    model, x = Last(), torch.randn(5, 3, 16)
    gradients = torch.randn(5, 3, 16) * 2.0**-9, torch.randn(1, 3, 16) * 2.0**-9

    def loss_fn(outputs: tuple[Tensor, Tensor]) -> Tensor:
        return sum((y * g).sum() for y, g in zip(outputs, gradients, strict=True))  # type: ignore[return-value]

    module = unitify.transform(model, (x,), recipe="fp8,simulate=true", loss_fn=loss_fn)
    leaf = x.clone().requires_grad_()
    loss_fn(module(leaf)).backward()

    recurrent = model.recurrent
    scales, values = parameter_scales(module), module.plan.unit
    held = {
        name: quantize(p / scales[f"recurrent.{name}"].fwd, E4M3) * scales[f"recurrent.{name}"].fwd
        if p.dim() > 1
        else p
        for name, p in recurrent.named_parameters()
    }
    rounded = quantize(x, E4M3).requires_grad_()
    hidden, last = torch.func.functional_call(recurrent, held, (rounded,))
    arriving = gradients[0] + gradients[1] / 5, gradients[1]
    names = [n.name for n in module.capture.graph.nodes if operation_name(n) == "operator.getitem"]
    cast = [
        quantize(g / values(n).bwd, E5M2) * values(n).bwd
        for n, g in zip(names, arriving, strict=True)
    ]
    assert all(values(n).bwd < 2.0**-6 for n in names)
    (expected,) = torch.autograd.grad((hidden, last), rounded, cast)
    torch.testing.assert_close(leaf.grad, expected)


def test_the_choice_says_what_stays() -> None:
    module = unitify.transform(nn.LSTM(16, 16), (torch.randn(4, 2, 16),), recipe="fp8")
    (choice,) = [c for c in module.casts if c.is_contraction]
    assert choice.reason == "a contraction, all but hidden states"
    assert choice.runs == "simulated"
    assert choice.runs_because == "hidden states stay in the model's own type"
    assert choice.has_weight
    assert choice.flops == 2 * 4 * 2 * 64 * (16 + 16)


def test_only_matrices_of_a_list_are_multiplied() -> None:
    module = unitify.transform(nn.LSTM(16, 16), (torch.randn(4, 2, 16),))
    (node,) = [n for n in module.capture.graph.nodes if "lstm" in operation_name(n)]
    operands = contraction_operands(RULES[operation_name(node)], node)
    assert [(name, index) for name, index, _ in operands] == [
        ("input", 0), ("params", 0), ("params", 1),
    ]  # fmt: skip


def test_headroom_moves_every_operand() -> None:
    """Weights of which few are large are rounded best further down in the range."""
    torch.manual_seed(0)
    model = nn.LSTM(16, 16)
    with torch.no_grad():
        model.weight_hh_l0[0, 0] = 100.0
    x = torch.randn(4, 2, 16)
    module = unitify.transform(model, (x,), recipe="fp8,headroom=measured", scales="measured")
    (choice,) = [c for c in module.casts if c.is_contraction]
    assert len(choice.casts) == 3 + 1
    held = model.weight_hh_l0 / parameter_scales(module)["weight_hh_l0"].fwd
    assert float(held.max()) / 2.0 ** choice.casts[2].exponent <= E4M3.largest
