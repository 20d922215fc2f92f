"""The published constraints as analysis, and schemes side by side."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitify
from unitify.operations.rule_table import load_rules
from unitify.report.constraints import Constraints, constraints
from unitify.report.schemes import compare_schemes

RULES = load_rules()


class Branch(nn.Module):
    """A layer, a residual branch, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.up = nn.Linear(16, 16), nn.Linear(16, 64)
        self.down, self.out = nn.Linear(64, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.down(F.gelu(self.up(x))))


def read(model: nn.Module) -> Constraints:
    torch.manual_seed(0)
    module = unitify.transform(model, (torch.randn(32, 16),), scheme="unit", verify=False)
    return constraints(module.capture, module.plan, RULES)


def test_a_chain_has_bridges_only() -> None:
    found = read(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)))
    assert len(found.bridges) == found.edges
    assert not found.constrained
    assert {g.joined for g in found.gradients} == {1.0}


def test_a_branch_is_constrained_and_what_surrounds_it_is_not() -> None:
    found = read(Branch())
    by_value = {op.value: op for op in found.operations}
    assert {op.value for op in found.constrained} == {"linear_1", "gelu", "linear_2", "add"}
    assert by_value["linear_1"].joined == ("linear",)
    # Weights that are used once hang on a bridge.
    assert all(not name.startswith("p_") for op in found.constrained for name in op.joined)
    up, gelu, down = by_value["linear_1"], by_value["gelu"], by_value["linear_2"]
    assert up.forward == pytest.approx(16**-0.5)
    # Gradients are those of the weights that were drawn.
    assert up.backward["linear"] == pytest.approx(64**-0.5, rel=0.1)
    assert gelu.forward == pytest.approx(1.5335, rel=1e-3)
    assert gelu.backward["linear_1"] == pytest.approx(1.4811, rel=0.01)
    assert down.backward["gelu"] == pytest.approx(16**-0.5, rel=0.1)
    assert up.spread == pytest.approx(2.0, rel=0.1)
    assert found.unit_share("planned") >= 14 / 15
    assert found.octaves("joined") > found.octaves("planned")


def test_a_reused_weight_lies_on_a_cycle() -> None:
    shared = nn.Linear(16, 16)
    found = read(nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(16, 4)))
    joined = {name for op in found.constrained for name in op.joined}
    assert any(name.startswith("p_") and name.endswith("weight") for name in joined)


def test_plain_data() -> None:
    found = read(Branch())
    data = json.loads(json.dumps(found.to_json()))
    assert len(data["operations"]) == len(found.operations)
    assert "would be constrained" in found.describe()


def test_schemes_side_by_side() -> None:
    torch.manual_seed(0)
    rows = compare_schemes(Branch(), (torch.randn(64, 16),))
    found = {row.scheme.split(" (")[0]: row for row in rows}
    assert list(found) == ["none", "Glorot", "one loss scale", "preserve", "unit", "u-mup"]
    assert found["none"].forward == found["one loss scale"].forward
    assert found["none"].backward <= found["one loss scale"].backward
    assert found["unit"].forward == 1.0
    # All but the gradient of the input, which is true.
    assert found["unit"].backward >= 20 / 21
    assert found["preserve"].backward >= 14 / 15
    assert found["unit"].octaves_forward < found["Glorot"].octaves_forward
    assert json.dumps([row.as_json() for row in found.values()])
