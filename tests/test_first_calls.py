"""What a call leaves for later ones: state of the first call or of the largest, and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unitify

pytestmark = pytest.mark.filterwarnings("ignore::unitify.UnitifyWarning")


class Net(nn.Module):
    """Two layers, and ``code``, which is given the module and the input."""

    def __init__(self, code: Callable[[Any, Tensor], Any], **held: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.code = nn.Linear(8, 8), nn.Linear(8, 8), code
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def both(code: Callable[[Any, Tensor], Any], **held: Any) -> tuple[nn.Module, nn.Module]:
    """The model and its module, of which no call was made."""
    model = Net(code, **held)
    return copy.deepcopy(model), unitify.transform(model, torch.randn(4, 8))


# -- state that follows from sizes ----------------------------------------------------------------


def _of_the_first(m: Any, x: Tensor) -> Tensor:
    m.n = len(x) if m.n is None else m.n
    return m.a(x) * m.n


def _tensor_of_the_first(m: Any, x: Tensor) -> Tensor:
    m.n = torch.ones(8) * len(x) if m.n is None else m.n
    return m.a(x) * m.n


def _of_the_largest(m: Any, x: Tensor) -> Tensor:
    m.n = max(m.n or 1, len(x))
    return m.a(x) / m.n


def _of_the_least(m: Any, x: Tensor) -> Tensor:
    m.n = min(m.n or 100, len(x))
    return m.a(x) / m.n


def _of_all(m: Any, x: Tensor) -> Tensor:
    if len(x) not in m.held:
        m.held.append(len(x))
    return m.a(x) * len(m.held)


def _table(m: Any, x: Tensor) -> Tensor:
    if m.n is None or len(m.n) < len(x):
        m.n = torch.arange(len(x)).float()
    return m.a(x) * m.n.sum()


FOLLOWING = [_of_the_first, _tensor_of_the_first, _of_the_largest, _of_the_least, _of_all, _table]


@pytest.mark.parametrize("sizes", [(4, 7, 4, 2, 7), (7, 4, 7)])
@pytest.mark.parametrize("code", FOLLOWING, ids=lambda code: code.__name__)
def test_state_of_sizes(code: Callable[[Any, Tensor], Any], sizes: tuple[int, ...]) -> None:
    model, module = both(code, n=None, held=[])
    assert module.diagnostics
    for size in sizes:
        x = torch.randn(size, 8)
        assert torch.equal(module(x), model(x))


def _grown(m: Any, x: Tensor) -> Tensor:
    if m.longest < x.shape[1]:
        m.longest, m.table = x.shape[1], torch.arange(x.shape[1]) / x.shape[1]
    return m.a(x) * m.table[: x.shape[1], None]


def test_a_table_that_grows_with_the_length() -> None:
    model = Net(_grown, longest=0)
    own = copy.deepcopy(model)
    module = unitify.transform(model, torch.randn(2, 6, 8))
    assert module.longest == 0
    for length in (3, 6, 9, 3):
        x = torch.randn(2, length, 8)
        assert torch.equal(module(x), own(x))


def _initialized(m: Any, x: Tensor) -> Tensor:
    x = m.a(x)
    if not m.is_ready:
        with torch.no_grad():
            m.b.bias.copy_(-x.mean(0))
        m.is_ready = True
    return x + m.b.bias


def test_weights_that_the_first_call_sets() -> None:
    model, module = both(_initialized, is_ready=False)
    assert not module.is_ready
    for x in (torch.randn(4, 8) * 3, torch.randn(4, 8)):
        assert torch.equal(module(x), model(x))


# -- gradients ------------------------------------------------------------------------------------


def _frozen_in_part(m: Any, x: Tensor) -> Any:
    first = m.b(x).mean()
    m.b.requires_grad_(False)
    second = m.b(m.a(x)).mean()
    m.b.requires_grad_(True)
    return first, second


def _changed_when_saved(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t * 2, lambda t: t):
        y = m.b(h.tanh())
    return h.mean(), y.mean()


@pytest.mark.parametrize("code", [_frozen_in_part, _changed_when_saved])
def test_gradients_of_every_loss(code: Callable[[Any, Tensor], Any]) -> None:
    model, module = both(code)
    x = torch.randn(4, 8)
    for one in (model, module):
        sum(one(x)).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(module.get_parameter(name).grad, parameter.grad)


def _returns_a_leaf(m: Any, x: Tensor) -> Any:
    x = x.clone().detach().requires_grad_(True)
    return m.b(torch.sin(m.a(x))), x


def test_a_returned_tensor_takes_gradients() -> None:
    model, module = both(_returns_a_leaf)
    x = torch.randn(4, 8)
    (expected,), (found,) = (
        torch.autograd.grad(y.sum(), leaf) for y, leaf in (model(x), module(x))
    )
    assert torch.equal(found, expected)


# -- randomness, and other things -----------------------------------------------------------------

CODES: dict[str, Callable[[Any, Tensor], Any]] = {
    "seed": lambda m, x: m.a(x) * (torch.initial_seed() % 7),
    "seed of the generator": lambda m, x: m.a(x) * (torch.default_generator.initial_seed() % 7),
    "own generator": lambda m, x: m.a(x)[
        torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    ],
    "given generator": lambda m, x: m.a(x) + torch.rand(8, generator=torch.default_generator),
    "power in place": lambda m, x: m.b(m.a(x).pow_(2)),
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_other_code(code: Callable[[Any, Tensor], Any]) -> None:
    torch.manual_seed(3)
    model, module = both(code)
    for seed in (3, 4):
        x = torch.randn(4, 8)
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        assert torch.equal(module(x), expected)


class KeepsEval(nn.Sequential):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        self[1].eval()


def test_a_train_that_returns_nothing() -> None:
    model = KeepsEval(nn.Linear(8, 8), nn.Dropout(0.5))
    module = unitify.transform(model, torch.randn(4, 8))
    module.train()
    model.train()
    x = torch.randn(4, 8)
    assert torch.equal(module(x), model(x))
