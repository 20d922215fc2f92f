"""In-place operations, through views, on buffers, inputs and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from capturing import Forward, assert_same_buffers, assert_same_call, states, transformed
from conversion import conversion, same
from torch import Tensor, nn

import unitify


def assign(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[:, 0] = m.other(x)[:, 1]
    return y * 2


def add_to_view(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    half = y.view(-1, 2, 4)[:, 1]
    half += m.other(x)[:, :4]
    return y.relu_() + half.sum()


def index_put(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y[torch.tensor([0, 2]), torch.tensor([1, 3])] = 5.0
    y[x > 1] = 0.0
    y.index_add_(0, torch.tensor([1, 1]), m.other(x)[:2])
    return y.masked_fill_(x < -1, -1.0)


def transposed(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    y.t()[1].mul_(m.other(x)[:, 0])
    y.transpose(0, 1)[2:4].copy_(x.t()[:2])
    y.diagonal().zero_()
    return y


def chained(m: Forward, x: Tensor) -> Tensor:
    y = m.linear(x)
    first, second = y.narrow(-1, 0, 4), y[..., 4:]
    first.mul_(2.0)
    second.add_(first).mul_(0.5)
    y.unsqueeze(0)[0, :, 7].fill_(3.0)
    return y


def outputs(m: Forward, x: Tensor) -> Tensor:
    made = torch.empty_like(x)
    with torch.no_grad():
        torch.mul(x, 3.0, out=made)
    y = m.linear(x).clone()
    y.bernoulli_(0.5)
    return y + made


def uninitialized(m: Forward, x: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], 8)
    y[:, :4] = m.linear(x)[:, :4]
    y[:, 4:] = m.other(x)[:, 4:]
    whole = torch.empty_like(y, memory_format=torch.contiguous_format)
    return y + torch.empty(8).fill_(2.0) + whole.copy_(x)


WRITES = [assign, add_to_view, index_put, transposed, chained, outputs, uninitialized]


@pytest.mark.parametrize("function", WRITES, ids=lambda f: f.__name__)
def test_writes_through_views(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, x = Forward(function), torch.randn(6, 8)
    module = transformed(model, x)
    assert module.verification is not None
    assert module.verification.exact
    assert tuple(module.parts) == ("",)
    assert_same_call(model, module, torch.randn(9, 8))


def test_memory_that_was_never_written_is_no_value() -> None:
    """What happens to be there would be taken for its RMS."""
    module = transformed(Forward(uninitialized), torch.randn(6, 8))
    held = {
        str(node.target).split(".")[1] for node in module.graph.nodes if "." in str(node.target)
    }
    assert {"new_zeros", "zeros_like", "zeros"} <= held
    assert not {"new_empty", "empty_like", "empty"} & held


def test_a_buffer_that_the_model_keeps() -> None:
    case = conversion("in_place")
    model, module = (made.train() for made in case.fresh())
    for step in range(3):
        x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(step))
        assert_same_call(model, module, x)
        assert_same_buffers(model, module)
    assert int(module.get_buffer("calls")) == 3
    before = states(module.eval())
    assert_same_call(model.eval(), module, *case.args)
    assert all(same(before[name], buffer) for name, buffer in states(module).items())


def test_an_input_that_the_model_writes_into() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x[:, 0] = 1.0
        return m.linear(x)

    model, x = Forward(forward), torch.randn(4, 8)
    module = unitify.transform(model, (x.clone(),), verify=False)
    mine, theirs = x.clone(), x.clone()
    assert same(model(mine), module(theirs))
    assert same(mine, theirs)
    assert not same(mine, x)


def test_a_model_that_writes_into_its_weights() -> None:
    """Behind the back of the optimizer, and in units that are no longer the weight's."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        if not m.training:
            with torch.no_grad():
                m.other.weight.mul_(0.5)
        return m.linear(m.other(x))

    model, x = Forward(forward), torch.randn(4, 8)
    before = model.other.weight.clone()
    module = transformed(model, x)
    assert set(module.parts) == {"linear"}
    assert "writes into its parameter other" in str(module.diagnostics)
    assert same(model.other.weight, before)
    for training in (True, False):
        assert_same_call(model.train(training), module.train(training), x)


def test_what_a_model_keeps_of_a_call_is_its_own() -> None:
    """Tensors of the calls that transform makes of it would hold on to their graphs."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        if "weight" not in m.kept:
            m.kept["weight"] = m.other.weight * 2.0
        return m.linear(x) @ m.kept["weight"]

    model, x = Forward(forward), torch.randn(4, 8)
    model.kept = {}
    module = transformed(model, x)
    assert model.kept == {}
    assert_same_call(model, module, x)


@pytest.mark.parametrize(
    "activation",
    [nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.Hardtanh, nn.RReLU, nn.ReLU6, nn.Mish],
)
def test_gradients_of_activations_in_place(activation: type[nn.Module]) -> None:
    """Some are computed from the result, which rounds otherwise than from the operand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), activation(inplace=True), nn.Linear(64, 16))
    x = torch.randn(64, 16)
    state = torch.get_rng_state()
    found = unitify.transform(model, (x,)).verification
    assert torch.equal(torch.get_rng_state(), state)
    assert found is not None
    assert found.exact
