"""A transformed module is called as the original is, and returns what it does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
import zoo_operations
from capturing import Forward, assert_same_call, transformed
from conversion import conversion, same
from torch import Tensor, nn

import unitify


class Signature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, scale: float = 2.0, *more: Tensor, bias: Tensor | None = None, **rest: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.linear(x) * scale
        for item in [*more, *(rest[key] for key in sorted(rest))]:
            y = y + item
        return y, {"sum": y.sum(), "biased": y if bias is None else y + bias}


def test_arguments_by_position_keyword_and_default() -> None:
    model, x = Signature(), torch.randn(3, 4)
    module = transformed(model, x)
    assert inspect.signature(module.forward) == inspect.signature(model.forward)
    assert_same_call(model, module, x)
    assert_same_call(model, module, x=x)
    assert_same_call(model, module, x, 2.0, bias=None)


def test_star_arguments() -> None:
    model = Signature()
    args = tuple(torch.randn(3, 4) for _ in range(3))
    kwargs = {"bias": torch.randn(4), "zeta": torch.randn(3, 4), "alpha": torch.randn(3, 4)}
    call = (args[0], 3.0, *args[1:])
    module = transformed(model, *call, **kwargs)
    assert_same_call(model, module, *call, **kwargs)
    assert_same_call(model, module, *call, **dict(reversed(kwargs.items())))


def test_sizes_of_star_arguments_as_torch_takes_them() -> None:
    class Stars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, *tensors: Tensor, **named: Tensor) -> Tensor:
            return self.linear(sum([*tensors, *named.values()]))

    model, x = Stars(), torch.randn(3, 4)
    batch = {0: torch.export.Dim("batch")}
    for shapes in ({"tensors": (batch, batch), "named": {"z": batch}}, "auto"):
        module = unitify.transform(model, (x, x + 1), {"z": x + 2}, dynamic_shapes=shapes)
        y = torch.randn(5, 4)
        assert_same_call(model, module, y, y + 1, z=y + 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda module, x: module(x[0]),
        lambda module, x: module(x[:, :3]),
        lambda module, x: module(x.double()),
        lambda module, x: module(x, 3.0),
        lambda module, x: module(x, bias=torch.zeros(4)),
        lambda module, x: module([x]),
        lambda module, x: module(None),
        lambda module, x: module(),
        lambda module, x: module(x, unknown=1),
    ],
)
def test_inputs_of_another_form_are_the_models(call: Callable[..., Any]) -> None:
    """The graph refuses them; the model's own code takes them, or raises what it raises."""
    model, x = Signature(), torch.randn(3, 4)
    module = transformed(model, x)
    with pytest.raises(unitify.UnitifyError) as caught:
        call(lambda *args, **kwargs: module.capture.flat_inputs(args, kwargs), x)
    assert caught.value.code == "U104"
    assert "x: float32[" in str(caught.value)
    try:
        call(model, x)
    except Exception as error:
        with pytest.raises(type(error)):
            call(module, x)
    else:
        call(lambda *args, **kwargs: assert_same_call(model, module, *args, **kwargs), x)


def test_a_model_output_stays_one() -> None:
    case = conversion("gpt2")
    output = case.module(**case.kwargs)
    assert type(output) is type(case.model(**case.kwargs))
    assert isinstance(output, transformers.utils.ModelOutput)
    assert output.loss is output[0]
    ids = case.kwargs["input_ids"]
    assert_same_call(case.model.eval(), case.module.eval(), input_ids=ids, labels=ids)


def test_dataclasses_and_nested_structures() -> None:
    case = conversion("structured")
    output = case.module(**case.kwargs)
    assert isinstance(output, zoo_operations.Prediction)
    assert isinstance(output.parts, list)
    assert output.count.dtype == torch.int64
    assert_same_call(case.model, case.module, **case.kwargs)


def test_one_tensor_passed_twice() -> None:
    """Export alone would merge the two, and be wrong for two different ones."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a) - 2 * b

    model, x = Two(), torch.randn(3, 4)
    module = transformed(model, x, x)
    assert_same_call(model, module, x, x)
    assert_same_call(model, module, x, torch.randn(3, 4))


def test_the_gradients_of_inputs_are_true() -> None:
    case = conversion("mlp")
    x = case.args[0].clone().requires_grad_()
    y = x.detach().clone().requires_grad_()
    case.model.eval()(x).square().sum().backward()
    case.module.eval()(y).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert same(x.grad, y.grad)


def test_non_float_values_are_untouched() -> None:
    def forward(m: Forward, x: Tensor) -> Any:
        order = x[:, 0].argsort()
        return m.linear(x)[order], order, x > 0, x.shape[0], None, "text"

    model, x = Forward(forward), torch.randn(5, 8)
    module = transformed(model, x)
    assert_same_call(model, module, x)
    expected, found = model(x), module(x)
    assert found[3:] == expected[3:]
    assert found[1].dtype == torch.int64
    assert found[2].dtype == torch.bool
