"""What code asks tensors about themselves, and who computes in place of torch: calls follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import unitify

pytestmark = pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")


class Asks(nn.Module):
    """Doubles its input where the answer to a question is true."""

    def __init__(self, question: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.question = question
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * 2 if self.question(x) else x)


QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "is_leaf": lambda x: x.is_leaf,
    "grad_fn": lambda x: x.grad_fn is None,
    "retains_grad": lambda x: x.retains_grad,
    "output_nr": lambda x: x.output_nr,
    "version": lambda x: not x.is_inference() and x._version,
    "base": lambda x: x._base is not None,
    "is_view": lambda x: x._is_view(),
    "hooks": lambda x: x._backward_hooks,
    "storage_offset": lambda x: x.storage_offset(),
    "is_shared": lambda x: x.is_shared(),
    "is_neg": lambda x: x.is_neg(),
    "torch_is_neg": torch.is_neg,
    "is_inference": lambda x: x.is_inference(),
    "is_parameter": lambda x: isinstance(x, nn.Parameter),
    "attribute": lambda x: hasattr(x, "gain"),
    "default": lambda x: getattr(x, "gain", 0.0),
    "of_a_result": lambda x: (x + 1).is_leaf,
}


def _inputs() -> Iterator[Tensor]:
    x = torch.randn(3, 4)
    yield x
    yield x.clone().requires_grad_()
    yield x.clone().requires_grad_() * 1
    yield x.clone().add_(1)
    yield nn.Parameter(x.clone())
    yield torch.randn(5, 4)[1:4]
    yield torch.randn(3, 4).share_memory_()
    yield torch._neg_view(x)
    yield torch.randn(2, 3, 4).requires_grad_().unbind(0)[1]
    with torch.inference_mode():
        yield torch.randn(3, 4)
    named = x.clone()
    named.gain = 3.0  # type: ignore[attr-defined]
    yield named
    hooked = x.clone().requires_grad_()
    hooked.register_hook(lambda gradient: gradient * 2)
    yield hooked
    kept = x.clone().requires_grad_() * 1
    kept.retain_grad()
    yield kept


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_is_answered_anew_in_each_call(question: Callable[[Tensor], Any]) -> None:
    model = Asks(question)
    module = unitify.transform(model, torch.randn(3, 4))
    for x in _inputs():
        # A tensor of inference mode cannot be saved for a backward pass.
        with torch.set_grad_enabled(not x.is_inference()):
            assert torch.equal(module(x), model(x))


@pytest.mark.parametrize(
    "question", [lambda x: x.gain, lambda x: getattr(x, "gain", 0.0)], ids=["asked", "default"]
)
def test_an_attribute_of_the_example_is_said(question: Callable[[Tensor], Any]) -> None:
    model = Asks(question)
    x = torch.randn(3, 4)
    x.gain = 0.0  # type: ignore[attr-defined]
    module = unitify.transform(model, x)
    assert [d.code for d in module.diagnostics] == ["U101"]
    assert vars(x) == {"gain": 0.0}
    for gain in (0.0, 1.0):
        x.gain = gain  # type: ignore[attr-defined]
        assert torch.equal(module(x), model(x))


def test_an_attribute_that_code_does_not_ask_for_changes_nothing() -> None:
    module = unitify.transform(nn.Linear(4, 4), torch.randn(3, 4))
    x = torch.randn(3, 4)
    x.label = "a"  # type: ignore[attr-defined]
    assert isinstance(module.capture.call.fitted((x,), {}), list)


class Doubled(TorchFunctionMode):
    """Doubles the results of two functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func in (F.linear, torch.tanh) else result


class DoubledTensor(Tensor):
    """Doubles the results of linear layers, as a class of weights could."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return (result * 2).as_subclass(Tensor) if func is F.linear else result


class Plain(Tensor):
    """A class that changes nothing."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + torch.arange(4)


def test_a_function_mode_applies_to_calls_inside_it() -> None:
    model, x = Net(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    for _ in range(2):
        assert torch.equal(module(x), model(x))
        with Doubled():
            assert torch.equal(module(x), model(x))
    with Doubled():
        inside = unitify.transform(model, x)
        assert torch.equal(inside(x), model(x))
    assert torch.equal(inside(x), model(x))


def test_a_default_device_applies_where_the_model_makes_tensors() -> None:
    x = torch.randn(3, 4)
    makes, none = unitify.transform(Net(), x), unitify.transform(nn.Linear(4, 4), x)
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match="meta"):
            makes(x)
        assert none._changed() is None
    with torch.device("cpu"):
        assert makes._changed() is None


@pytest.mark.parametrize("kind", [DoubledTensor, Plain])
def test_classes_of_inputs_compute(kind: type[Tensor]) -> None:
    model, x = Net(), torch.randn(3, 4).as_subclass(kind)
    module = unitify.transform(model, torch.randn(3, 4))
    assert torch.equal(module(x), model(x))
    assert type(module(x)) is type(model(x))


def test_a_class_of_weights_that_comes_later_computes() -> None:
    model, x = Net(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    weight = nn.Parameter(model.linear.weight.detach().as_subclass(DoubledTensor))
    model.linear.weight = weight
    module.linear.weight = weight
    assert torch.equal(module(x), model(x))


class Penalized(nn.Module):
    """Reads an attribute of its weight, and every parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        gain = getattr(self.linear.weight, "gain", 1.0)
        return self.linear(x) * gain + sum(p.square().sum() for p in self.parameters())


@pytest.mark.parametrize("first", [None, 3.0])
def test_an_attribute_of_a_parameter_takes_effect(first: float | None) -> None:
    model, x = Penalized(), torch.randn(3, 4)
    if first is not None:
        model.linear.weight.gain = first  # type: ignore[assignment]
    module = unitify.transform(model, x)
    assert module._changed() is None
    assert torch.equal(module(x), model(x))
    for weight in (model.linear.weight, module.linear.weight):
        weight.gain = 2.0
    assert torch.equal(module(x), model(x))


def test_an_attribute_of_a_tied_weight() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(3, 4)
    model[1].weight = model[0].weight
    model[0].weight.gain = 3.0  # type: ignore[assignment]
    module = unitify.transform(model, x)
    assert torch.equal(module(x), model(x))
    assert model[0].weight.gain == 3.0


class Named(nn.Module):
    """Calls functions by keywords alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.reshape(input=torch.flatten(input=x), shape=(3, 4))
        return self.linear(y if torch.is_neg(input=x) else y * 2)


def test_questions_by_keywords() -> None:
    model, x = Named(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    for given in (x, torch._neg_view(x), torch.randn(4, 3).t()):
        assert torch.equal(module(given), model(given))


def test_a_parameter_that_comes_later_counts_where_code_lists_all() -> None:
    model, x = Penalized(), torch.randn(3, 4)
    module = unitify.transform(model, x)
    for one in (model, module):
        one.linear.register_parameter("more", nn.Parameter(torch.ones(2)))
    assert torch.equal(module(x), model(x))


def test_a_parameter_that_comes_later_changes_nothing_elsewhere() -> None:
    module = unitify.transform(nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4))
    module[0].register_parameter("more", nn.Parameter(torch.ones(2)))
    assert module._changed() is None
