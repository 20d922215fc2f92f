"""Models that do unusual things are bitwise themselves, too, or refused with a code."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from conversion import tensors
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo_unusual import ISLANDS, WHOLE, Forward

import unitify
from unitify.module.assembly import AssembledModule


def transformed(model: nn.Module, *args: Any) -> unitify.UnitScaledModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unitify.transform(model, args)


def passes(model: nn.Module, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """Outputs and gradients of one training step by hand, and what it leaves behind."""
    given = pytree.tree_map(lambda x: x.clone(), args)
    model.zero_grad()
    torch.manual_seed(1)
    outputs = tensors(model(*given))
    wave = [torch.linspace(-1, 1, t.numel()).view_as(t) for t in outputs if t.numel()]
    if wave:
        torch.autograd.backward([t for t in outputs if t.numel()], wave)
    found = {f"output {i}": t.detach() for i, t in enumerate(outputs)}
    found |= {f"input {i}": x.detach() for i, x in enumerate(given)}
    is_stored = isinstance(model, unitify.UnitScaledModule)
    state = model.original_state_dict() if is_stored else model.state_dict()
    found |= {f"{name} afterwards": tensor.clone() for name, tensor in state.items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.grad is not None:
            bwd = model.plan.parameters[name].bwd if is_stored else 1.0
            found[f"gradient of {name}"] = (parameter.grad * bwd).to_dense()
    return found


def assert_exact(model: nn.Module, module: unitify.UnitScaledModule, args: tuple[Any, ...]) -> None:
    expected, found = passes(model, args), passes(module, args)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor.nan_to_num(7.0), found[name].nan_to_num(7.0)), name


@pytest.mark.usefixtures("near_unit")
@pytest.mark.parametrize("name", WHOLE | ISLANDS)
def test_exact(name: str) -> None:
    torch.manual_seed(0)
    model, args = (WHOLE | ISLANDS)[name]()
    before = {} if name == "lazy" else {n: t.nan_to_num(7.0) for n, t in model.state_dict().items()}
    module = transformed(model, *args)
    assert all(torch.equal(model.state_dict()[n].nan_to_num(7.0), t) for n, t in before.items())
    assert isinstance(module, AssembledModule) == (name in ISLANDS)
    assert list(module.original_state_dict()) == list(model.state_dict())
    for training in (True, False):
        mine, theirs = copy.deepcopy(model), copy.deepcopy(module)
        assert_exact(mine.train(training), theirs.train(training), args)
        assert unitify.verify(mine, theirs, args).exact


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_mask_in_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, args = WHOLE["mask_by_a_product"]()
    args = tuple(x.to(dtype) for x in args)
    module = transformed(model.to(dtype), *args)
    assert torch.equal(module(*args), model(*args))
    assert bool(module(*args).isfinite().all())


def test_a_recurrent_layer_keeps_its_length_free() -> None:
    model, _ = WHOLE["recurrent_residual"]()
    module = transformed(model, torch.randn(7, 2, 4))
    assert_exact(model, module, (torch.randn(4, 3, 4),))


def test_an_empty_batch_stands_for_any() -> None:
    model, args = WHOLE["empty_batch"]()
    assert_exact(model, transformed(model, *args), (torch.randn(5, 4),))


def test_a_hook_on_a_gradient_is_named() -> None:
    model, args = ISLANDS["hook_on_a_gradient"]()
    with pytest.warns(unitify.UnitifyWarning, match="U109 .* Tensor.register_hook"):
        unitify.transform(model, args)


def test_a_gradient_that_is_retained() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.last = m.first(x)
        if m.last.requires_grad:
            m.last.retain_grad()
        return m.second(m.last.relu())

    model = Forward(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4))
    x = torch.randn(3, 4)
    with pytest.warns(unitify.UnitifyWarning, match=r"U109 .* Tensor.retain_grad"):
        module = unitify.transform(model, (x,))
    for each in (model, module):
        each(x).square().sum().backward()
    assert torch.equal(module.last.grad, model.last.grad)


def _wave(count: int) -> Tensor:
    return torch.polar(torch.ones(count), torch.linspace(0.0, 2.0, count))


#: Tensors that are another one's memory and a flag.
FLAGGED = {
    "conjugate": lambda: _wave(6).conj(),
    "negative": lambda: _wave(6).conj().imag,
    "adjoint": lambda: _wave(12).view(6, 2).mH[1],
}


@pytest.mark.parametrize("kind", FLAGGED)
@pytest.mark.parametrize("held", ["buffer", "parameter", "attribute", "input"])
def test_conjugates_and_negatives(kind: str, held: str) -> None:
    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        y = y if held == "input" else m.held
        product = m.linear(x) * y
        return torch.view_as_real(product) if product.is_complex() else product

    tensor = FLAGGED[kind]()
    assert tensor.is_conj() or tensor.is_neg()
    model = Forward(forward, linear=nn.Linear(6, 6))
    if held == "parameter":
        model.held = nn.Parameter(tensor)
    elif held == "buffer":
        model.register_buffer("held", tensor)
    elif held == "attribute":
        model.held = tensor
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    module = transformed(model, x, tensor)
    assert torch.equal(module(x, tensor), model(x, tensor))


@pytest.mark.usefixtures("near_unit")
def test_own_attributes_come_first() -> None:
    model, args = WHOLE["names_of_our_own"]()
    module = transformed(model, *args)
    assert isinstance(module.graph, torch.fx.Graph)
    assert set(module.plan.values.values()) != {unitify.Scale()}
    weight = module.get_parameter("graph.weight")
    assert weight is dict(module.named_parameters())["graph.weight"]
    assert module.get_submodule("capture").weight is module.get_parameter("capture.weight")


def test_an_output_may_be_written_into() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3)), torch.randn(5, 4)
    module = transformed(model, x)
    for each in (model, module):
        output = each(x)
        output[:, 0] = -1.0
        output.mul_(2.0).square().sum().backward()
    for name, parameter in module.named_parameters():
        true = parameter.grad * module.plan.parameters[name].bwd
        assert torch.equal(true, model.get_parameter(name).grad), name


def mapped(m: Forward, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: m.linear(row))(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Forward(mapped, linear=nn.Linear(4, 4)), "transform of torch.func"),
        (torch.jit.script(nn.Sequential(nn.Linear(4, 4))), "TorchScript"),
        (nn.Sequential(nn.LazyLinear(4), nn.Linear(9, 9)), "does not run"),
    ],
    ids=["vmap", "script", "lazy"],
)
def test_what_is_refused_has_a_code(model: nn.Module, reason: str) -> None:
    with pytest.raises(unitify.UnitifyError, match=f"U102.*{reason}"):
        unitify.transform(model, torch.randn(3, 4))
