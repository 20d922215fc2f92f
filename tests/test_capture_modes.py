"""Train and eval mode: one graph that switches, or two."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from capturing import Forward, assert_same_buffers, assert_same_call, states, transformed
from conversion import conversion, same
from torch import Tensor, nn

import unitify
from unitify.capture import whole
from unitify.capture.recorded_graph import RecordedGraph, record_once


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.feature = nn.Dropout(0.5), nn.Dropout1d(0.5)
        self.first, self.second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.feature(self.drop(self.first(x))))


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_switch_everything(training: bool) -> None:
    """Whatever the mode it was captured in."""
    model, x = Modes().train(training), torch.randn(7, 6)
    module = transformed(model, x)
    for mode in (True, False, True):
        model.train(mode)
        module.train(mode)
        before = states(module)
        assert_same_call(model, module, x)
        assert_same_buffers(model, module)
        changed = any(not same(before[name], b) for name, b in states(module).items())
        assert changed is mode
    assert int(module.get_buffer("first.num_batches_tracked")) == 2


def test_one_module_in_eval() -> None:
    """Batch norms are often frozen one by one while the rest trains."""
    model, x = Modes(), torch.randn(7, 6)
    module = transformed(model, x)
    for one in (model, module):
        one.train()
        one.get_submodule("first").eval()
    assert_same_call(model, module, x)
    assert_same_buffers(model, module)
    assert int(module.get_buffer("first.num_batches_tracked")) == 0
    assert int(module.get_buffer("second.num_batches_tracked")) == 1


def test_capture_with_one_module_in_eval() -> None:
    model, x = Modes(), torch.randn(7, 6)
    model.first.eval()
    module = transformed(model, x)
    assert not module.get_submodule("first").training
    assert module.get_submodule("second").training
    assert_same_call(model, module, x)
    assert_same_call(model.train(), module.train(), x)
    assert_same_buffers(model, module)


def test_two_graphs_where_the_modes_differ() -> None:
    case = conversion("stochastic_depth")
    assert set(case.module.parts) == {"", "@2"}
    for training in (True, False):
        model, module = case.model.train(training), case.module.train(training)
        assert_same_call(model, module, *case.args)
        assert ("auxiliary" in module(*case.args)) is training
    copied = copy.deepcopy(case.module)
    assert_same_call(case.model.eval(), copied.eval(), *case.args)


def test_a_mode_that_cannot_be_captured_runs_the_models_own_code() -> None:
    def forward(m: Forward, x: Tensor) -> Tensor:
        return m.linear(x) if m.training or x.sum() > 0 else x

    model = Forward(forward).train()
    module = transformed(model, torch.randn(4, 8))
    assert [d.code for d in module.diagnostics] == ["U103"]
    assert_same_call(model.eval(), module.eval(), torch.randn(4, 8))
    cast = unitify.transform(model.train(), (2.0**12 * torch.randn(4, 8),), recipe="fp16")
    with pytest.raises(unitify.UnitifyError) as caught:
        cast.eval()(torch.randn(4, 8))
    assert caught.value.code == "U103"


class Uses(nn.Module):
    """Uses a layer in one mode alone."""

    def __init__(self, layer: nn.Module, training: bool) -> None:
        super().__init__()
        self.inner, self.layer, self.own = nn.Linear(6, 6), layer, training

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.layer(y) if self.training == self.own else y


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, nn.BatchNorm1d])
def test_a_layer_of_one_mode(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6) if kind is nn.Linear else nn.BatchNorm1d(6)
    model, x = Uses(layer, training), torch.randn(7, 6)
    module = transformed(model, x)
    assert set(module.parts) == {"", "@2"}
    for mode in (True, False):
        model.train(mode)
        module.train(mode)
        assert_same_call(model, module, x)
    assert_same_buffers(model, module)


def test_graphs_that_do_not_merge_are_as_they_were() -> None:
    from unitify.capture.whole import capture

    captured = capture(Uses(nn.Linear(6, 6), training=False), (torch.randn(7, 6),), {})
    assert captured.other is not None
    for one in (captured, captured.other):
        assert all(node.users for node in one.graph.nodes if node.op == "get_attr")


# -- one recording where no code asks for the mode ---------------------------------------------


class Asks(nn.Module):
    """A layer whose code asks for the mode in some way; the base class does not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def gain(self) -> float:
        return 2.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) * self.gain()
        return y


class ByAttribute(Asks):
    def gain(self) -> float:
        return 2.0 if self.training else 3.0


class ByName(Asks):
    def gain(self) -> float:
        return 2.0 if getattr(self, "training") else 3.0  # noqa: B009


class ByAnotherModule(Asks):
    def gain(self) -> float:
        return 2.0 if self.linear.training else 3.0


class BySwitching(Asks):
    factor = 2.0

    def train(self, mode: bool = True) -> BySwitching:
        self.factor = 2.0 if mode else 3.0
        return super().train(mode)

    def gain(self) -> float:
        return self.factor


class ByALayerOfTorch(Asks):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(super().forward(x))
        return y


@pytest.mark.parametrize(
    ("kind", "recordings"),
    [(Asks, 1), *((kind, 2) for kind in Asks.__subclasses__())],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_second_recording_where_code_asks_for_the_mode(
    kind: type[Asks], recordings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def counted(*args: Any) -> RecordedGraph:
        made.append(args)
        return record_once(*args)

    monkeypatch.setattr(whole, "record_once", counted)
    model, x = kind(), torch.randn(3, 4)
    module = unitify.transform(model, (x,), verify=False)
    assert len(made) == recordings
    for training in (True, False):
        assert torch.equal(model.train(training)(x), module.train(training)(x))
