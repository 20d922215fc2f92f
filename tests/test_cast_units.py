"""Casts round near unit RMS, also what has to be stored true: inputs, and what layers sum into."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conversion import parameter_scales
from torch import Tensor, nn

import unitify
from unitify.diagnostics import UnitifyError
from unitify.formats.table import E4M3, E5M2, quantize

fp8_linear = torch.ops.unitify.fp8_linear

#: RMS of an input that E4M3 cannot hold as it is: its smallest number is 2^-9.
SMALL = 2.0**-14


def small(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape) * SMALL


def rounded_at(x: Tensor, scale: float) -> Tensor:
    return quantize(x / scale, E4M3) * scale


@pytest.mark.parametrize("simulate", [True, "auto"])
def test_an_input_is_rounded_at_unit_rms(simulate: str | bool) -> None:
    x, model = small(64, 32), nn.Linear(32, 16, bias=False)
    recipe = {"base": "fp8", "simulate": simulate}
    module = unitify.transform(model, (x,), recipe=recipe)
    assert module.verification is not None
    assert module.verification.exact
    (given,) = [n.name for n in module.capture.graph.nodes if n.op == "placeholder"]
    assert module.plan.values[given].fwd == 1.0
    assert module.plan.units[given].fwd == SMALL
    weight = rounded_at(model.weight, parameter_scales(module)["weight"].fwd)
    torch.testing.assert_close(module(x), F.linear(rounded_at(x, SMALL), weight))
    torch.testing.assert_close(module.to_inference()(x), module(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_so_is_that_of_a_recurrent_layer(kind: type[nn.RNNBase]) -> None:
    x, model = small(5, 3, 16), kind(16, 32)
    module = unitify.transform(model, (x,), recipe="fp8")
    scales, by_hand = parameter_scales(module), kind(16, 32)
    by_hand.load_state_dict(
        {
            name: rounded_at(p, scales[name].fwd) if p.dim() > 1 else p
            for name, p in model.named_parameters()
        }
    )
    assert torch.equal(module(x)[0], by_hand(rounded_at(x, SMALL))[0])


class Beside(nn.Module):
    """A recurrent layer adds to the gradient of a linear one beside another user."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.recurrent = nn.Linear(16, 16, bias=False), nn.LSTM(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        held = self.linear(x)
        output: Tensor = self.recurrent(held)[0]
        return output + held


def test_so_is_a_gradient_that_has_to_arrive_true() -> None:
    torch.manual_seed(0)
    model, x = Beside(), torch.randn(5, 3, 16)
    tiny = 2.0**-30

    def loss_fn(output: Tensor) -> Tensor:
        return output.sum() * tiny

    module = unitify.transform(model, (x,), recipe="fp8,simulate=true", loss_fn=loss_fn)
    assert module.plan.values["linear"].bwd == 1.0
    scale = module.plan.units["linear"].bwd
    assert tiny / 4 < scale < tiny * 64
    loss_fn(module(x)).backward()
    found = module.get_parameter("linear.weight")
    assert found.grad is not None
    loss_fn(model(x)).backward()
    true = model.linear.weight.grad
    assert true is not None
    error = found.grad * module.plan.parameters["linear.weight"].bwd - true
    # Below the smallest number of E5M2, 2^-16, nothing would be left.
    assert float(quantize(torch.tensor(scale), E5M2)) == 0.0
    assert float(error.norm() / true.norm()) < 0.1


def test_a_baseline_casts_where_it_lies() -> None:
    x, model = small(64, 32), nn.Linear(32, 16)
    module = unitify.transform(model, (x,), recipe="fp8-plain")
    assert not module.plan.units
    expected = F.linear(quantize(x, E4M3), quantize(model.weight, E4M3), model.bias)
    torch.testing.assert_close(module(x), expected)


def test_units_survive_and_are_checked() -> None:
    x, model = small(64, 32), nn.Linear(32, 16)
    module = unitify.transform(model, (x,), recipe="fp8")
    plan = unitify.ScalePlan.from_json(json.loads(module.plan.dumps()))
    assert plan == module.plan
    again = unitify.rebuild(model, module.state_dict(), plan, (x,), recipe="fp8")
    assert torch.equal(again(x), module(x))
    odd = replace(plan, units={"nobody": plan.units["p_weight"]})
    with pytest.raises(UnitifyError, match="U301"):
        unitify.rebuild(model, module.state_dict(), odd, (x,), recipe="fp8")


def test_what_is_near_unit_rms_is_cast_as_it_is() -> None:
    torch.manual_seed(0)
    module = unitify.transform(nn.Linear(32, 16), (torch.randn(64, 32),), recipe="fp8")
    moved = {name for name, unit in module.plan.units.items() if unit.fwd != 1.0}
    assert {"p_weight", "p_bias"} <= moved
    assert not any(name.startswith("input") for name in moved)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("sizes", [(4, 16, 0), (4, 0, 16), (0, 16, 16)], ids=str)
def test_a_product_without_elements(sizes: tuple[int, ...], create_graph: bool) -> None:
    rows, width, out = sizes
    x, weight, bias = torch.randn(rows, width), torch.randn(out, width), torch.randn(out)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    made = fp8_linear(x, weight, bias, "e4m3", "e5m2")
    found = torch.autograd.grad(made.square().sum(), leaves, create_graph=create_graph)
    assert [g.shape for g in found] == [t.shape for t in leaves]
