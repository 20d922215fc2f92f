"""``torch.export`` of a transformed module: the original's call, output type and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conversion import conversion, same, tensors
from torch import Tensor, nn

import unitify


class Stateful(nn.Module):
    """Inputs with a structure, one of them by keyword; a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.dropout = nn.LSTM(4, 6), nn.Dropout(0.3)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor], *, scale: Tensor) -> Any:
        hidden, last = self.lstm(x, state)
        return {"hidden": self.dropout(hidden) * scale, "last": last}


def stateful() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(0)
    state = torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    return Stateful(), (torch.randn(5, 2, 4), state), {"scale": torch.rand(2, 6)}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["stateful", "bert"])
def test_it_is_the_model(name: str, training: bool) -> None:
    if name == "stateful":
        model, args, kwargs = stateful()
        module = unitify.transform(model, args, kwargs)
    else:
        case = conversion(name)
        model, args, kwargs = case.model, case.args, case.kwargs
        module = case.fresh()[1]
    model.train(training)
    exported = torch.export.export(module.train(training), args, kwargs).module()
    torch.manual_seed(0)
    expected = model(*args, **kwargs)
    torch.manual_seed(0)
    found = exported(*args, **kwargs)
    assert type(found) is type(expected)
    assert all(same(a, b) for a, b in zip(tensors(expected), tensors(found), strict=True))
    gradients = [
        torch.autograd.grad(sum(t.sum() for t in tensors(o)), list(m.parameters()))
        for o, m in ((expected, model), (found, exported))
    ]
    names = [name for name, _ in model.named_parameters()]
    assert [n for n, _ in exported.named_parameters()] == names
    for parameter, true, stored in zip(names, *gradients, strict=True):
        assert same(stored * module.plan.parameters[parameter].bwd, true), parameter


def test_inputs_of_another_form_are_refused() -> None:
    model, args, kwargs = stateful()
    module = unitify.transform(model, args, kwargs)
    with pytest.raises(unitify.UnitifyError, match="U104"):
        torch.export.export(module, (args[0], args[1][0]), kwargs)


def test_a_mode_that_was_not_captured_is_refused() -> None:
    class Trains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError
            return self.linear(x)

    with pytest.warns(unitify.UnitifyWarning, match="U103"):
        module = unitify.transform(Trains(), (torch.randn(2, 4),))
    with pytest.raises(unitify.UnitifyError, match="U103"):
        torch.export.export(module.eval(), (torch.randn(2, 4),))


def test_a_graph_alone_is_flat() -> None:
    """What stands around the graph belongs to the module, not to a copy of its graph."""
    import copy

    from unitify.capture.execution import GraphRunner

    model, args, kwargs = stateful()
    module = unitify.transform(model.eval(), args, kwargs)
    flat = module.capture.flat_inputs(args, kwargs)
    for graph in (module.graph, copy.deepcopy(module.graph)):
        found = GraphRunner(graph, module._attribute).run(*flat)
        assert isinstance(found, tuple)
        assert same(found[0], module(*args, **kwargs)["hidden"])


def test_a_module_is_itself_after_an_export() -> None:
    """torch puts equal copies in the places of containers that modules hold."""

    class Weighted(nn.LayerNorm):
        def __init__(self) -> None:
            super().__init__(4)
            self.factors = [2.0, {"then": (3.0, 1.0)}]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factors[0] * self.factors[1]["then"][0]

    x = torch.randn(3, 4)
    model = nn.Sequential(Weighted(), nn.Linear(4, 4))
    module = unitify.transform(model, (x,), scales="measured", recipe="bf16")
    expected, before = module(x), module.get_submodule("0").factors
    torch.export.export(module, (x,))
    assert module.get_submodule("0").factors is not before
    assert same(module(x), expected)
    assert same(module.to_inference()(x), module.eval()(x))
    module.get_submodule("0").factors[0] = 4.0
    with pytest.warns(unitify.UnitifyWarning, match="U11[57]"):
        module(x)
