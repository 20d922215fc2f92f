"""Who adds how much noise, by running: against each cast alone, with data and without."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitify.capture.whole import Capture, capture
from unitify.formats.table import E4M3
from unitify.noise.measured import measured_noise
from unitify.noise.operand_casts import OperandCast
from unitify.noise.sensitivity import sensitivity
from unitify.recipe.cast import Place
from unitify.rulebook.contractions import contraction_operands
from unitify.rulebook.rule_table import load_rules
from unitify.rulebook.schema import operation_name

RULES = load_rules()


class Net(nn.Module):
    """A recurrent layer, and a convolution whose noise the norm behind it enlarges."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(16, 24)
        self.mix = nn.Conv1d(24, 24, 3, padding=1)
        self.norm = nn.BatchNorm1d(24)
        self.last = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, (state, _) = self.recurrent(x)
        hidden = self.norm(self.mix(hidden.permute(1, 2, 0)))
        return self.last(F.relu(hidden).mean(-1)), state


def recorded() -> tuple[Capture, dict[Place, OperandCast], Tensor]:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(12, 32, 16)
    net.norm.momentum = 1.0
    net(x)
    held = capture(net.eval(), (x,), {})
    casts = {
        (node.name, name, index): OperandCast(E4M3)
        for node in held.graph.nodes
        if (rule := RULES.get(operation_name(node))) and rule.casts
        for name, index, _ in contraction_operands(rule, node)
    }
    return held, casts, x


@pytest.mark.parametrize("has_data", [True, False])
def test_each_share_is_what_the_cast_alone_does(
    has_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over directions varies by √(2 / directions) of its expectation, 6 % over 600."""
    directions = 600
    monkeypatch.setattr("unitify.noise.sensitivity.DIRECTIONS", directions)
    held, casts, x = recorded()
    shares = sensitivity(held, RULES, casts, [[x]] if has_data else None).outputs
    assert len(shares) == 2
    for output, found in shares.items():
        assert found.keys() == {"lstm", "conv1d", "linear"}
        for operation, share in found.items():
            alone = {place: cast for place, cast in casts.items() if place[0] == operation}
            noise = measured_noise(held, alone, [x])[output]
            if noise.error:
                z = (share / noise.relative - 1) / math.sqrt(2 / directions)
                assert abs(z) < 4, (output, operation)
            else:
                assert share == 0.0


def test_nothing_of_the_model_changes() -> None:
    held, casts, x = recorded()
    before = {name: tensor.clone() for name, tensor in held.model.state_dict().items()}
    state = torch.get_rng_state()
    first = sensitivity(held, RULES, casts, [[x]])
    assert torch.equal(state, torch.get_rng_state())
    assert sensitivity(held, RULES, casts, [[x]]) == first
    assert all(torch.equal(before[name], t) for name, t in held.model.state_dict().items())
    assert all(p.grad is None for p in held.model.parameters())
