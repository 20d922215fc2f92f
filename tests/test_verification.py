"""``unitify.verify`` tells a module of the model from every other."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify
from unitify.verifying.comparison import compare, difference_of, same

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@functools.cache
def transformed() -> tuple[nn.Module, unitify.UnitScaledModule]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)
    )
    return model, unitify.transform(model, (X,))


def built() -> tuple[nn.Module, unitify.UnitScaledModule]:
    """A copy of its own for each use."""
    return copy.deepcopy(transformed())


def test_in_the_modes_of_the_module() -> None:
    model, module = built()
    for training in (False, True):
        assert unitify.verify(model, module.train(training), (X,)).exact
    module.get_submodule("2").eval()
    assert unitify.verify(model, module, (X,)).exact
    assert model[2].training


def test_a_kernel_for_evaluation_without_gradients_is_told_of() -> None:
    """A model in train mode is evaluated later, and may then round in another way."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    x = torch.randn(3, 5, 4)
    with pytest.warns(unitify.UnitifyWarning, match="U504 .* in eval mode without gradients"):
        module = unitify.transform(model, (x,))
    with torch.no_grad():
        assert torch.allclose(module.eval()(x), model.eval()(x), atol=1e-5)


class Nodes(nn.Module):
    """A cell, which rounds otherwise as it is recorded, on sums in a tensor of the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.score, self.cell = nn.Linear(8, 8), nn.Linear(8, 1), nn.GRUCell(8, 8)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        messages = self.score(x[edges[0]]).exp() * self.message(x[edges[0]])
        return self.cell(torch.zeros(len(x), 8).index_add(0, edges[1], messages), x)


def test_rounding_is_measured_where_the_model_makes_tensors() -> None:
    torch.manual_seed(0)
    model, edges = Nodes(), torch.randint(0, 6, (2, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        module = unitify.transform(model, (torch.randn(6, 8), edges))
    assert [d.code for d in module.diagnostics if d.code == "U504"]
    assert torch.get_default_dtype() == torch.float32


def test_a_copy_is_as_good_as_the_model() -> None:
    model, module = built()
    assert unitify.verify(copy.deepcopy(model), module, (X,)).exact
    assert unitify.verify(model, copy.deepcopy(module), (X,)).exact


@pytest.mark.parametrize("side", ["model", "module"])
@pytest.mark.parametrize("what", ["parameter", "buffer"])
def test_one_number_that_differs(side: str, what: str) -> None:
    model, module = built()
    changed = {"model": model, "module": module}[side]
    tensor = dict([*changed.named_parameters(), *changed.named_buffers()])[
        {"parameter": "4.weight", "buffer": "2.running_mean"}[what]
    ]
    with torch.no_grad():
        tensor.view(-1)[0] += 1e-3
    found = unitify.verify(model, module, (X,))
    assert not found.exact
    assert found.differences


def test_another_model() -> None:
    _, module = built()
    found = unitify.verify(nn.Linear(4, 3), module, (X,))
    assert not found.exact
    assert "parameter 0.weight" in str(found.differences[0]) + str(found.differences[1])


# -- comparison ------------------------------------------------------------------------------


def test_underflow_is_where_the_original_has_it() -> None:
    def found(original: float, stored: float) -> bool:
        others = torch.tensor([1.0, 1e-20])
        a, b = (torch.cat([others, torch.tensor([x])]) for x in (original, stored))
        difference = difference_of("x", a, b)
        assert difference is not None
        return difference.is_underflow

    assert found(2e-40, 2.01e-40)
    # The sum of such a number and one that the format rounds.
    assert found(1e-36, float(torch.nextafter(torch.tensor(1e-36), torch.tensor(1.0))))
    # One step, of a number that nothing below the normal range can have moved.
    assert not found(1e-30, float(torch.nextafter(torch.tensor(1e-30), torch.tensor(1.0))))
    # What the original lost altogether comes back as a normal number.
    assert not found(0.0, 4e-38)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1 + 2j, 3.0]),
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        torch.tensor([True, False]),
    ],
    ids=["nan", "complex", "sparse", "nested", "bool"],
)
def test_every_kind_of_tensor(tensor: torch.Tensor) -> None:
    assert same(tensor, tensor.clone())
    other = torch.zeros(3)
    assert not same(tensor, other)
    assert compare({"x": tensor}, {"x": tensor.clone()}) == ()
    (found,) = compare({"x": tensor}, {"x": other})
    assert found.name == "x"
    assert compare({"x": tensor}, {})[0].name == "x (present on one side only)"


def test_a_zero_has_a_sign() -> None:
    zero, negative = torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])
    assert not same(zero, negative)
    (found,) = compare({"x": zero}, {"x": negative})
    assert (found.largest, found.is_underflow) == (0.0, True)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_is_compared_as_it_runs_eagerly() -> None:
    """Whatever its compiler makes of it, or kept of other models."""

    def coarse(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return lambda *inputs: [1.5 * result for result in graph(*inputs)]

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.GELU()), torch.randn(3, 4)
    compiled = torch.compile(model, backend=coarse)
    assert not torch.equal(compiled(x), model(x))
    module = unitify.transform(compiled, (x,))
    assert module.verification is not None
    assert module.verification.exact
    assert torch.equal(module(x), model(x))
