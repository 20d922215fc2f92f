"""Calls that differ from the example in what a shape does not show: layout, identity, kinds of
constants, the order of arguments.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers import BertConfig, BertModel

import unitify

pytestmark = pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")


class Net(nn.Module):
    """A layer, and ``code``, which is given the module and the arguments."""

    def __init__(self, code: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.code = nn.Linear(8, 8), code

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.code(self, *args, **kwargs)


def x() -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def assert_same(found: Any, expected: Any) -> None:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert a.detach().numpy().tobytes() == b.detach().numpy().tobytes()


# -- memory layout ------------------------------------------------------------------------------


def _add_to_contiguous(m: Any, x: Tensor) -> Tensor:
    y = x.contiguous()
    y.add_(1)
    return m.layer(x) * y


def _double_flat(m: Any, x: Tensor) -> Tensor:
    x.reshape(-1).mul_(2)
    return m.layer(x)


LAYING: dict[str, Callable[[Any, Tensor], Any]] = {
    "contiguous, written": _add_to_contiguous,
    "of a result": lambda m, x: _add_to_contiguous(m, x * 2),
    "as_strided": lambda m, x: m.layer(x.contiguous().as_strided((2, 8), (8, 1))),
    "sums": lambda m, x: (m.layer(x.contiguous()).mean(), x.contiguous().sum()),
    "returned": lambda m, x: x.contiguous() * 1,
    "reshape, written": _double_flat,
    "einsum": lambda m, x: m.layer(torch.einsum("ij,jk->ik", x, m.layer.weight)),
    "flatten": lambda m, x: m.layer(x).flatten() + x.flatten(),
}


def _layouts() -> Iterator[Tensor]:
    yield torch.randn(8, 3).t()
    yield torch.randn(6, 16)[:3, :8]
    yield torch.randn(6, 8)[::2]
    yield torch.randn(6, 16)[::2, ::2]
    yield torch.randn(3, 8)


@pytest.mark.parametrize("code", LAYING.values(), ids=LAYING)
def test_a_call_on_another_layout(code: Callable[[Any, Tensor], Any]) -> None:
    model = Net(code)
    module = unitify.transform(model, x())
    for given in _layouts():
        mine, theirs = (
            torch.empty_strided(given.shape, given.stride()).copy_(given) for _ in range(2)
        )
        assert_same(module(mine), model(theirs))
        assert torch.equal(mine, theirs)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(144, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.inner(images).contiguous().view(len(images), -1))


def test_images_by_pixels() -> None:
    model, images = Images(), torch.randn(2, 3, 6, 6)
    module = unitify.transform(model, images)
    by_pixels = images.to(memory_format=torch.channels_last)
    for given in (images, by_pixels):
        assert torch.equal(module(given), model(given))
    for one in (model, module):
        one.to(memory_format=torch.channels_last)
    for given in (images, by_pixels):
        assert torch.equal(module(given), model(given))


def test_a_weight_that_lies_in_another_order() -> None:
    model = Net(lambda m, x: m.layer(x) + m.layer.weight.contiguous().view(-1)[:8])
    module, other = unitify.transform(model, x()), torch.randn(8, 8).t()
    for one in (model, module):
        one.layer.weight.data = other
    assert torch.equal(module(x()), model(x()))


def test_tokens_that_are_cut_run_the_graph() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    model = BertModel(BertConfig(num_hidden_layers=1, vocab_size=32, **sizes))
    tokens = torch.randint(0, 32, (2, 9))
    module = unitify.transform(model, tokens[:, :8].clone())
    assert isinstance(module.capture.call.fitted((tokens[:, :-1],), {}), list)


# -- identity -----------------------------------------------------------------------------------

ASKING: dict[str, Callable[..., Any]] = {
    "is": lambda m, q, k: m.layer(q) * (2.0 if q is k else 3.0),
    "is not": lambda m, q, k: m.layer(q) * (2.0 if k is not q else 3.0),
    "any": lambda m, q, k: m.layer(q) * (2.0 if any(q is other for other in [k]) else 3.0),
    "id": lambda m, q, k: m.layer(q) * (2.0 if id(q) == id(k) else 3.0),
    "set": lambda m, q, k: m.layer(q) * len({q, k}),
}


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("code", ASKING.values(), ids=ASKING)
def test_one_tensor_given_twice(code: Callable[..., Any], is_one: bool) -> None:
    model, one, other = Net(code), x(), x() + 1
    example = (one, one if is_one else other)
    module = unitify.transform(model, example)
    assert module.verification.exact
    assert isinstance(module.capture.call.fitted(example, {}), list)
    assert torch.equal(module(one, one), model(one, one))
    assert torch.equal(module(one, other), model(one, other))


@pytest.mark.parametrize("example", ["aaa", "abb", "aba"])
def test_attention_to_itself(example: str) -> None:
    model = nn.MultiheadAttention(64, 4, batch_first=True)
    of = {"a": torch.randn(2, 5, 64), "b": torch.randn(2, 5, 64)}
    module = unitify.transform(model, tuple(of[name] for name in example))
    for names in ("aaa", "abb", "aba"):
        for one in (model, module):
            one.zero_grad()
            one(*(of[name] for name in names))[0].square().sum().backward()
        for name, parameter in model.named_parameters():
            assert torch.equal(module.get_parameter(name).grad, parameter.grad)


def test_code_that_does_not_ask_takes_both() -> None:
    module = unitify.transform(Net(lambda m, q, k: m.layer(q) + k), (x(), x()))
    one = x()
    assert isinstance(module.capture.call.fitted((one, one), {}), list)


# -- constants and the order of arguments ---------------------------------------------------------


class Kind(enum.IntEnum):
    ONE = 1


CONSTANTS: list[tuple[Any, Any]] = [
    (1, 1.0), (1, True), (0.0, -0.0), (2, 2.0), (Kind.ONE, 1), (1, Kind.ONE), (2.0, np.int64(2)),
    (math.nan, math.nan), ([1], [1.0]), ({"k": 1}, {"k": 1.0}), ((0.0,), (-0.0,)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
]  # fmt: skip


def _with_constant(m: Any, x: Tensor, held: Any) -> Any:
    values = held.values() if isinstance(held, dict) else held
    held = next(iter(values)) if isinstance(held, dict | list | tuple) else held
    kind = float(type(held) in (bool, Kind))
    return m.layer(x), torch.arange(3) * held, torch.ones(2) / held, x * kind


@pytest.mark.parametrize(("first", "then"), CONSTANTS)
def test_a_constant_of_another_kind(first: Any, then: Any) -> None:
    model = Net(_with_constant)
    module = unitify.transform(model, (x(), first))
    assert isinstance(module.capture.call.fitted((x(), first), {}), list)
    for given in (first, then):
        assert_same(module(x(), given), model(x(), given))


class Default(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, held: Any = {"a": 1.0, "b": 2.0}) -> Tensor:  # noqa: B006
        return self.layer(x) * (3.0 if held is None else next(iter(held.values())))


@pytest.mark.parametrize("given", [{"b": 2.0, "a": 1.0}, {"a": 1.0, "b": 2.0}, None])
def test_an_argument_that_the_example_leaves_out(given: Any) -> None:
    model = Default()
    module = unitify.transform(model, x())
    assert torch.equal(module(x(), held=given), model(x(), held=given))


def test_the_order_of_keyword_arguments() -> None:
    model = Net(lambda m, **named: m.layer(torch.cat(list(named.values()))))
    a, b = x(), x() + 1
    module = unitify.transform(model, example_kwargs={"a": a, "b": b})
    assert torch.equal(module(b=b, a=a), model(b=b, a=a))
    assert torch.equal(module(a=b, b=a), model(a=b, b=a))
