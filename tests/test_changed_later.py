"""What a user changes on a finished module: names that did not exist, ties, modes of children."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from python_state import transformed, x
from torch import Tensor, nn

import unitify


class OfItsClass:
    gain = 1.0


class Net(nn.Module):
    def __init__(self, own: Callable[[Any, Tensor], Tensor], **held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.own = nn.Linear(8, 8), own
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def both(net: Callable[[], nn.Module], change: Callable[[Any], None]) -> list[list[Tensor]]:
    """Results and gradients of the model and of its module, both changed in one way."""
    model = net()
    found = []
    for each in (model, transformed(model, x())):
        change(each)
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = each(x())
        y.square().sum().backward()
        gradients = [p.grad for p in each.parameters() if p.grad is not None]
        found.append([y, *gradients])
    return found


def assert_same(found: list[list[Tensor]]) -> None:
    mine, theirs = found
    assert len(mine) == len(theirs)
    assert all(map(torch.equal, mine, theirs))


def times(found: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, x: net.inner(x) * found(net)


#: What code looks for in vain: the net, and how it comes to exist.
NAMES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None]]] = {
    "getattr": (
        lambda: Net(times(lambda net: getattr(net, "gain", 1.0))),
        lambda net: setattr(net, "gain", 2.0),
    ),
    "hasattr": (
        lambda: Net(times(lambda net: 1.0 + hasattr(net, "flag"))),
        lambda net: setattr(net, "flag", None),
    ),
    "a namespace": (
        lambda: Net(times(lambda net: getattr(net.cfg, "gain", 1.0)), cfg=SimpleNamespace(a=1)),
        lambda net: setattr(net.cfg, "gain", 2.0),
    ),
    "an object": (
        lambda: Net(times(lambda net: getattr(net.cfg, "gain", 1.0)), cfg=OfItsClass()),
        lambda net: setattr(net.cfg, "gain", 2.0),
    ),
    "__dict__": (
        lambda: Net(times(lambda net: net.__dict__.get("gain", 1.0))),
        lambda net: setattr(net, "gain", 2.0),
    ),
    "a parameter": (
        lambda: Net(lambda net, x: F.linear(x, net.inner.weight, getattr(net, "late", None))),
        lambda net: setattr(net, "late", nn.Parameter(torch.ones(8))),
    ),
    "a buffer": (
        lambda: Net(times(lambda net: getattr(net, "late", 1.0))),
        lambda net: net.register_buffer("late", torch.full((8,), 3.0)),
    ),
}


def test_a_name_that_ceases_to_exist() -> None:
    net = lambda: Net(times(lambda net: getattr(net, "gain", 1.0)), gain=2.0)  # noqa: E731
    assert_same(both(net, lambda net: delattr(net, "gain")))


@pytest.mark.parametrize("recipe", [None, "fp8,multiple=1"])
def test_a_submodule_that_is_compiled(recipe: str | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    module = unitify.transform(model, (x(),), recipe=recipe)
    expected = module(x())
    module[0].compile(backend="eager")
    assert torch.equal(module(x()), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_comes_to_exist(name: str) -> None:
    assert_same(both(*NAMES[name]))


def test_an_attribute_of_the_class_of_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(times(lambda net: net.cfg.gain), cfg=OfItsClass())
    module = transformed(model, x())
    monkeypatch.setattr(OfItsClass, "gain", 2.0)
    assert torch.equal(module(x()), model(x()))


GAIN = torch.ones(8)


def test_a_global_tensor_that_is_written_into() -> None:
    gain = torch.ones(8)
    for tensor, net in (
        (GAIN, lambda: Net(times(lambda _: GAIN))),
        (gain, lambda: Net(times(lambda _: gain))),
    ):
        model = net()
        module = transformed(model, x())
        tensor.mul_(2)
        assert torch.equal(module(x()), model(x()))


class Adds(nn.Module):
    """Writes into its first input, or into a part of it, and uses the second one afterwards."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.rows = nn.Linear(8, 8), rows

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a[: self.rows].add_(1)
        return self.inner(a) + b


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("is_one", [True, False])
def test_inputs_that_share_memory(rows: int, is_one: bool) -> None:
    model, example = Adds(rows), x()
    module = transformed(model, example, example if is_one else x(4).clone())
    for parts in (
        lambda t: (t[:4], t[:4]),
        lambda t: (t[:4], t[2:6]),
        lambda t: (t[:4], t[4:].clone()),
    ):
        mine, theirs = x(8), x(8)
        assert torch.equal(module(*parts(theirs)), model(*parts(mine)))
        assert torch.equal(mine, theirs)


class Counts(nn.Module):
    """Writes into its buffer, or into its input, before it reads the other one."""

    total: Tensor

    def __init__(self, writes_state: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.writes_state = nn.Linear(8, 8), writes_state
        self.register_buffer("total", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        (self.total if self.writes_state else x).add_(1)
        return self.inner(x) + self.total


@pytest.mark.parametrize("writes_state", [True, False])
@pytest.mark.parametrize("path", ["", "net."])
def test_an_input_that_shares_memory_with_a_buffer(writes_state: bool, path: str) -> None:
    model: Any = Counts(writes_state)
    model = nn.Sequential(model) if path else model
    module = transformed(model, x())
    for given in (lambda net: net.total, lambda net: net.total[:4].view(4, 8), lambda net: x()):
        held = [net[0] if path else net for net in (module, model)]
        mine, theirs = module(given(held[0])), model(given(held[1]))
        assert torch.equal(mine, theirs)
        assert torch.equal(held[0].total, held[1].total)


#: Code that goes by the mode of a module that it does not call.
MODES: dict[str, Callable[[], nn.Module]] = {
    "a batch norm's": lambda: Net(
        lambda net, x: F.batch_norm(
            net.inner(x), net.other.running_mean, net.other.running_var, training=net.other.training
        ),
        other=nn.BatchNorm1d(8),
    ),
    "a dropout's": lambda: Net(
        lambda net, x: F.dropout(net.inner(x), 0.5, net.other.training), other=nn.Dropout()
    ),
    "forward of a dropout": lambda: Net(
        lambda net, x: net.other.forward(net.inner(x)), other=nn.Dropout()
    ),
    "forward of a batch norm": lambda: Net(
        lambda net, x: net.other.forward(net.inner(x)), other=nn.BatchNorm1d(8)
    ),
    "a branch": lambda: Net(times(lambda net: 1.0 + net.other.training), other=nn.Dropout()),
    "of all": lambda: Net(
        times(lambda net: sum(m.training for m in net.modules())), other=nn.Dropout()
    ),
    "one that is called": lambda: Net(lambda net, x: net.other(net.inner(x)), other=nn.Dropout()),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODES)
def test_the_mode_of_a_child_alone(name: str, training: bool) -> None:
    def change(net: Any) -> None:
        net.train(training)
        net.other.train(not training)

    assert_same(both(MODES[name], change))
    # With the whole, the graph follows.
    assert_same(both(MODES[name], lambda net: net.train(training)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.last.weight = self.first.weight
        one = torch.ones(8)
        self.register_buffer("gain", one)
        self.register_buffer("shift", one)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) * self.gain + self.shift


@pytest.mark.parametrize("place", ["first.weight", "last.weight", "gain", "shift"])
def test_a_tie_that_is_cut(place: str) -> None:
    def cut(net: Any) -> None:
        path, _, name = place.rpartition(".")
        owner = net.get_submodule(path)
        made = torch.full_like(getattr(owner, name), 0.5)
        setattr(owner, name, nn.Parameter(made) if path else made)

    assert_same(both(Tied, cut))


class HoldsItself(nn.Module):
    """Functions that hold the model, in an attribute and in a hook, and a list of the user's."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.gain = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.head = lambda x: self.inner(x)

        def hook(_module: nn.Module, _args: Any, y: Tensor) -> Tensor:
            seen.append(1)
            return y * self.gain

        self.inner.register_forward_hook(hook)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        return self.head(x) * factor


def test_functions_of_the_module_hold_the_module() -> None:
    seen: list[int] = []
    model = HoldsItself(seen)
    module = transformed(model, x())
    expected = model(x())
    with torch.no_grad():
        module.gain.mul_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Another argument: the module runs the model's own code.
        found = module(x(), factor=2.0)
    assert torch.equal(module(x()), expected * 2)
    assert torch.equal(found, expected * 4)
    found.sum().backward()
    assert module.gain.grad is not None
    assert model.gain.grad is None
    before = len(seen)
    module(x(), factor=3.0)
    assert len(seen) == before + 1


class KeepsFrozen(nn.Module):
    """Its batch norm stays in evaluation while ``freeze`` is set."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm, self.freeze = nn.Linear(8, 8), nn.BatchNorm1d(8), True

    def train(self, mode: bool = True) -> KeepsFrozen:
        super().train(mode)
        if self.freeze:
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inner(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", ["none", "flag", "norm", "eval"])
def test_a_module_that_its_model_keeps_frozen(change: str, training: bool) -> None:
    model = KeepsFrozen().train(training)
    module = transformed(model, x())
    assert module._changed() is None
    for each in (model, module):
        if change == "flag":
            each.freeze = False
            each.train()
        elif change == "norm":
            each.norm.train()
        elif change == "eval":
            each.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            assert torch.equal(module(x()), model(x()))
    assert torch.equal(module.norm.running_mean, model.norm.running_mean)


def test_nested_tensors_are_of_another_kind() -> None:
    """The fast path of an encoder gives its layers such tensors where some tokens are masked."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = Net(
        lambda net, x: net.other(x, src_key_padding_mask=x[..., 0] > 0.5),
        other=nn.TransformerEncoder(layer, 2),
    )
    module = transformed(model, torch.randn(2, 5, 8))
    assert module.verification is not None
    assert module.verification.is_accepted


class AsksIsLeaf(nn.Module):
    """Stays Python, but for its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if x.is_leaf else x * 2)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), AsksIsLeaf])
def test_a_copy_has_the_hooks_that_were_added(
    make: Callable[[], nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", unitify.UnitifyWarning)
        module = unitify.transform(make(), torch.randn(3, 4))
    module.register_forward_pre_hook(lambda of, args: (args[0] + 1,))
    module.register_forward_hook(lambda of, args, result: result * 2)
    module.register_full_backward_hook(lambda of, given, back: tuple(g * 3 for g in given))
    module.register_state_dict_post_hook(
        lambda of, held, prefix, metadata: held.update(more=torch.ones(1))
    )
    made = copied(module)
    one, other = (torch.ones(3, 4).requires_grad_() for _ in range(2))
    expected, found = module(one), made(other)
    assert torch.equal(found, expected)
    expected.sum().backward()
    found.sum().backward()
    assert torch.equal(one.grad, other.grad)
    assert list(made.state_dict()) == list(module.state_dict())
