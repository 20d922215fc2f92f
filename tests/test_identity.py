"""A parameter is a parameter, a hook a hook and a class a class, wherever Python keeps it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, update_bn
from truth import assert_true_to, call, differences

import unitify


def x(rows: int = 4) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))


def assert_trains_alike(model: nn.Module, module: nn.Module) -> None:
    """Three steps of SGD, then the same call again."""
    pair = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, module)]
    for step in range(3):
        call(model, (x(),), step)
        call(module, (x(),), step)
        for optimizer in pair:
            optimizer.step()
    assert_true_to(model, module, [(x(),), (x(7),)])
    for (name, a), b in zip(model.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b), name


# -- parameters ----------------------------------------------------------------------------------


class Kept(nn.Module):
    """Reads its parameters through something else than its own attributes."""

    def __init__(self, keep: Callable[[nn.Parameter, nn.Parameter], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Parameter(torch.randn(8, 8) / 3) for _ in range(2))
        self.out = nn.Linear(8, 4)
        self.kept = keep(self.a, self.b)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept() if callable(self.kept) else self.kept
        kept = vars(kept) if isinstance(kept, SimpleNamespace) else kept
        for parameter in kept.values() if isinstance(kept, dict) else kept:
            x = torch.tanh(x @ parameter)
        return self.out(x)


KEPT: dict[str, Callable[[nn.Parameter, nn.Parameter], Any]] = {
    "list": lambda a, b: [a, b, a],
    "tuple": lambda a, b: (a, b),
    "dict": lambda a, b: {"first": a, "second": b},
    "object": lambda a, b: SimpleNamespace(first=a, second=b),
    "closure": lambda a, b: lambda: [a, b],
    "nested": lambda a, b: {"all": [a, b]}["all"],
}


@pytest.mark.parametrize("name", KEPT)
def test_parameters_that_python_keeps(name: str) -> None:
    model = Kept(KEPT[name])
    module = unitify.transform(model, (x(),))
    assert set(module.parts) == {""}
    assert module.verification is not None
    assert module.verification.exact
    assert_trains_alike(model, module)
    with torch.no_grad():
        module.a.zero_()
    assert torch.equal(module(x()), module.out.bias.expand(4, 4))


def test_a_view_of_a_parameter_has_its_numbers_and_no_gradient() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.row, self.whole = self.linear.weight.detach()[2], self.linear.weight.data

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.row + x @ self.whole

    torch.manual_seed(0)
    model = Views()
    module = unitify.transform(model, (x(),))
    assert_trains_alike(model, module)


def test_tied_by_object_and_tied_by_memory() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8, bias=False) for _ in range(3))
            self.b.weight = self.a.weight
            self.c.weight = nn.Parameter(self.a.weight.data)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    for weights in ("true", "stored"):
        model = Tied()
        module = unitify.transform(model, (x(),), weights=weights)
        a, b, c = (module.get_submodule(n).weight for n in "abc")
        assert a is b
        assert a is not c
        assert a.data_ptr() == c.data_ptr()
        assert not differences(model, module, (x(),))
        if weights == "true":
            assert_trains_alike(model, module)


def test_modules_that_no_one_registered() -> None:
    class Forgotten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.experts = [nn.Linear(8, 8), nn.Linear(8, 8)]

        def forward(self, x: Tensor) -> Tensor:
            return sum(e(self.first(x)) for e in self.experts)

    torch.manual_seed(0)
    model = Forgotten()
    module = unitify.transform(model, (x(),))
    assert list(dict(module.named_parameters())) == ["first.weight", "first.bias"]
    assert module.experts[0] is not model.experts[0]
    for one in (model, module):
        one(x()).square().sum().backward()
        torch.optim.SGD(one.experts[1].parameters(), lr=0.1).step()
    assert not differences(model, module, (x(),))
    assert torch.equal(module.experts[1].weight, model.experts[1].weight)


# -- hooks ---------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


@pytest.mark.parametrize("weights", ["true", "stored"])
@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_on_parameters(weights: str, inplace: bool) -> None:
    seen: list[Tensor] = []
    rows = torch.zeros(8, 1)
    rows[6:] = 1

    def hooked() -> nn.Sequential:
        model = net()
        model[0].weight.register_hook(lambda g: g * rows)
        model[2].bias.register_hook(lambda g: g.clamp(-0.5, 0.5))
        model[2].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
        return model

    model = hooked()
    module = unitify.transform(hooked(), (x(),), weights=weights, inplace=inplace)
    seen.clear()
    mine, theirs = call(model, (x(),)), call(module, (x(),))
    assert len(seen) == 2
    assert torch.equal(*seen)
    for name in ("0.weight", "2.bias"):
        scale = module.plan.parameters[name].bwd
        assert scale == 1.0
        assert torch.equal(mine[f"gradient of {name}"], theirs[f"gradient of {name}"])


def test_hooks_on_modules_are_in_the_graph_or_fire() -> None:
    seen: list[str] = []

    def doubled(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * 2

    def noted(module: nn.Module, *_: Any) -> None:
        seen.append(type(module).__name__)

    def hooked(*names: str) -> nn.Sequential:
        model = nn.Sequential(net(), nn.Linear(4, 4))
        if "pure" in names:
            model[0][0].register_forward_hook(doubled)
        if "noting" in names:
            model[0][1].register_forward_hook(noted)
        if "before" in names:
            model[0].register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
        if "backward" in names:
            model[0][2].register_full_backward_hook(noted)
        if "root" in names:
            model.register_forward_hook(lambda m, *_: seen.append("root"))
        return model

    for names, parts in {
        ("pure", "before"): {""},
        ("noting",): {"0.0", "0.2", "1"},
        ("backward",): {"0.0", "0.2", "1"},
        ("root", "pure"): {""},
    }.items():
        torch.manual_seed(0)
        model = hooked(*names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", unitify.UnitifyWarning)
            module = unitify.transform(model, (x(),))
        assert set(module.parts) == parts, names
        seen.clear()
        call(model, (x(),))
        expected = list(seen)
        seen.clear()
        call(module, (x(),))
        assert [s.replace("UnitScaledModule", "root") for s in seen] == expected, names
        assert_true_to(model, module, [(x(),), (x(7),)])


# -- classes -------------------------------------------------------------------------------------


def norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)
    )


IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_submodules_are_instances_of_their_classes() -> None:
    model = norms()
    model[1].note = "kept"
    module = unitify.transform(model, (IMAGES,))
    kinds = [type(m) for m in model.modules()][1:]
    assert [type(m) for m in module.modules()][1:] == kinds
    assert [type(m) for m in copy.deepcopy(module).modules()][1:] == kinds
    assert module.get_submodule("1").note == "kept"
    for one in (model, module):
        one.train()
        for child in one.modules():
            if isinstance(child, _BatchNorm):
                child.eval()
    assert not differences(model, module, (IMAGES,))


def test_update_bn() -> None:
    model = norms()
    module = unitify.transform(model, (IMAGES,))
    averaged = [AveragedModel(m) for m in (model, module)]
    data = [(torch.randn(8, 3, 6, 6) * 2 + 1,) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        for one in averaged:
            update_bn(data, one)
    mine, theirs = (dict(a.module.named_buffers()) for a in averaged)
    for name, buffer in mine.items():
        assert torch.equal(buffer, theirs[name]), name


@pytest.mark.usefixtures("near_unit")
def test_a_submodule_can_be_called() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(x)))

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block())
    module = unitify.transform(model, (x(),))
    block = module.get_submodule("1")
    assert isinstance(block, Block)
    assert not differences(model[1], block, (x(),))
    apply_activation_checkpointing(module, check_fn=lambda m: isinstance(m, Block))
    assert any(isinstance(m, CheckpointWrapper) for m in module.modules())
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        found = call(module, (x(),))
    expected = call(model, (x(),))
    assert torch.equal(found["output 0"], expected["output 0"])


def test_a_transformed_module_is_not_transformed_again() -> None:
    module = unitify.transform(net(), (x(),))
    for again in (module, nn.Sequential(module, nn.Linear(4, 4))):
        with pytest.raises(unitify.UnitifyError, match="U016") as raised:
            unitify.transform(again, (x(),))
        assert "module.original" in str(raised.value)
    with pytest.raises(unitify.UnitifyError, match="U016"):
        unitify.estimate(module, (x(),))


# -- results -------------------------------------------------------------------------------------


def test_one_tensor_twice_among_the_results() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.kept = nn.Linear(8, 8), torch.zeros(())

        def forward(self, x: Tensor) -> dict[str, Any]:
            self.kept = self.inner(x)
            return {"a": self.kept, "b": [self.kept, x], "c": self.kept * 2}

    torch.manual_seed(0)
    model, given = Twice(), x()
    module = unitify.transform(model, (given,))
    output = module(given)
    assert output["a"] is output["b"][0] is module.kept
    assert output["a"] is not output["c"]
    assert output["b"][1] is given
    assert_true_to(model, module, [(x(),), (x(7),)], "kept")


# -- modules of graphs ---------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.out = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(x)))


@pytest.mark.usefixtures("near_unit")
def test_a_traced_graph_is_a_model() -> None:
    model = torch.fx.symbolic_trace(Small())
    module = unitify.transform(model, (x(),))
    assert set(module.parts) == {""}
    assert_true_to(model, module, [(x(),), (x(7),)])
    assert_trains_alike(model, module)
    twice = nn.Sequential(torch.fx.symbolic_trace(Small()), nn.Linear(4, 4))
    inside = unitify.transform(twice, (x(),))
    assert not differences(twice, inside, (x(),))
    # Its own code is there, too, where it has to run.
    for one in (twice, inside):
        one.get_submodule("0").register_forward_hook(lambda *a: a[2] * 2)
    with pytest.warns(unitify.UnitifyWarning, match="U115"):
        assert not differences(twice, inside, (x(),))


def test_an_exported_program_is_a_model() -> None:
    shapes = ({0: torch.export.Dim.AUTO},)
    model = torch.export.export(Small(), (x(),), dynamic_shapes=shapes).module()
    with warnings.catch_warnings():
        # It holds for one mode, and has no other.
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        module = unitify.transform(model, (x(),))
    assert set(module.parts) == {""}
    for rows in (4, 7):
        assert not differences(model, module, (x(rows),))
