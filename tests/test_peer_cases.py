"""What another library's transform fails on: each of them is transformed, and bitwise the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion import is_exact
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unitify

Case = tuple[nn.Module, tuple[Any, ...]]
CASES: dict[str, Callable[[], Case]] = {}


class Formula(nn.Module):
    """A module of three linear layers and whatever ``forward`` makes of them."""

    def __init__(self, formula: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.lin, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.w = nn.Parameter(torch.randn(8, 8) / 3)
        for name, module in modules.items():
            self.add_module(name, module)
        self.formula = formula

    def forward(self, *inputs: Tensor) -> Any:
        return self.formula(self, *inputs)


def x(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 8)))


def formula(name: str, function: Callable[..., Any], *inputs: Any, **modules: Any) -> None:
    def build() -> Case:
        made = {key: module() for key, module in modules.items()}
        given = tuple(item() if callable(item) else item for item in inputs) or (x(),)
        return Formula(function, **made), given

    CASES[name] = build


def labels() -> Tensor:
    return torch.tensor([1, 7, 3, 0])


formula("constant add", lambda m, x: m.lin(x) + 1)
formula("plain add", lambda m, x: m.lin(x) + m.b(x))
formula("residual", lambda m, x: x + m.lin(x))
formula("plain add before residual", lambda m, x: (y := m.lin(x) + m.b(x)) + m.c(y))
formula("torch.add", lambda m, x: torch.add(x, m.lin(x)))
formula("subtract", lambda m, x: m.lin(x) - x)
formula("F.linear without bias", lambda m, x: F.linear(x, m.w))
formula("F.linear weight by keyword", lambda m, x: F.linear(x, weight=m.w))
formula("F.linear bias by keyword", lambda m, x: F.linear(x, m.w, bias=m.lin.bias))
formula("x @ w.T", lambda m, x: x @ m.w.T)
formula("x.matmul(w.T)", lambda m, x: x.matmul(m.w.T))
formula("einsum", lambda m, x: torch.einsum("bi,oi->bo", x, m.w))
formula("x.softmax", lambda m, x: m.lin(x).softmax(-1))
formula("F.softmax", lambda m, x: F.softmax(m.lin(x), dim=-1))
formula("torch.softmax", lambda m, x: torch.softmax(m.lin(x), -1))
formula("gelu tanh", lambda m, x: F.gelu(m.lin(x), approximate="tanh"))
formula("SiLU in place", lambda m, x: m.act(m.lin(x)), act=lambda: nn.SiLU(inplace=True))
formula("ReLU", lambda m, x: m.act(m.lin(x)), act=nn.ReLU)
formula(
    "Dropout in place",
    lambda m, x: m.drop(m.lin(x)) * 2,
    drop=lambda: nn.Dropout(0.1, inplace=True),
)
formula("Dropout", lambda m, x: m.drop(m.lin(x)), drop=lambda: nn.Dropout(0.5))
formula("RMSNorm", lambda m, x: m.norm(m.lin(x)), norm=lambda: nn.RMSNorm((8,)))
formula("Conv1d", lambda m, x: m.conv(x), lambda: x(2, 3, 9), conv=lambda: nn.Conv1d(3, 4, 3))
formula(
    "Conv1d same",
    lambda m, x: m.conv(x),
    lambda: x(2, 3, 9),
    conv=lambda: nn.Conv1d(3, 4, 4, padding="same"),
)
formula("Conv2d", lambda m, x: m.conv(x), lambda: x(2, 3, 6, 6), conv=lambda: nn.Conv2d(3, 4, 3))
formula(
    "cross entropy of three dimensions",
    lambda m, x, y: F.cross_entropy(m.lin(x).transpose(1, 2), y),
    lambda: x(2, 5, 8),
    lambda: torch.randint(0, 8, (2, 5)),
)
formula(
    "label smoothing",
    lambda m, x, y: F.cross_entropy(m.lin(x), y, label_smoothing=0.1),
    x, labels,
)  # fmt: skip
formula(
    "class weights",
    lambda m, x, y: F.cross_entropy(m.lin(x), y, weight=torch.arange(1.0, 9.0)),
    x, labels,
)  # fmt: skip
formula(
    "no reduction",
    lambda m, x, y: F.cross_entropy(m.lin(x), y, reduction="none"),
    x, labels,
)  # fmt: skip
formula(
    "ignore_index",
    lambda m, x, y: F.cross_entropy(m.lin(x), y, ignore_index=7),
    x, labels,
)  # fmt: skip
formula(
    "integer position ids",
    lambda m, ids: (e := m.emb(ids) + m.pos(torch.arange(ids.shape[1]) + 1)) + m.lin(e),
    lambda: torch.randint(0, 9, (2, 5)),
    emb=lambda: nn.Embedding(9, 8),
    pos=lambda: nn.Embedding(12, 8),
)
formula(
    "MultiheadAttention",
    lambda m, x: m.attention(x, x, x),
    lambda: x(2, 5, 8),
    attention=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
)
formula(
    "TransformerEncoderLayer",
    lambda m, x: m.layer(x),
    lambda: x(2, 5, 8),
    layer=lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
)
formula(
    "attention with a scale",
    lambda m, x: F.scaled_dot_product_attention(m.lin(x), m.b(x), m.c(x), scale=0.3),
    lambda: x(2, 5, 8),
)
formula("GRU", lambda m, x: m.gru(x)[0], lambda: x(2, 5, 8), gru=lambda: nn.GRU(8, 6))
formula(
    "weight norm",
    lambda m, x: m.normed(x),
    normed=lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)),
)
formula("Bilinear", lambda m, x, y: m.form(x, y), x, x, form=lambda: nn.Bilinear(8, 8, 3))
formula("checkpointing", lambda m, x: checkpoint(m.lin, F.gelu(m.b(x)), use_reentrant=False))


def _zero_head() -> nn.Module:
    head = nn.Linear(8, 4)
    nn.init.zeros_(head.weight)
    return head


formula("zero weight", lambda m, x: m.head(m.lin(x)), head=_zero_head)
formula("Linear(64, 1)", lambda m, x: m.head(x), lambda: x(4, 64), head=lambda: nn.Linear(64, 1))
formula("Linear(1, 1)", lambda m, x: m.head(x), lambda: x(4, 1), head=lambda: nn.Linear(1, 1))
CASES["bare Linear as the root"] = lambda: (nn.Linear(8, 4), (x(),))


def branch(m: Formula, x: Tensor) -> Tensor:
    y = m.lin(x)
    return m.b(y) if y.sum() > 0 else m.c(y)


formula("data-dependent branch", branch)


@pytest.mark.parametrize("name", CASES)
def test_it_is_exact(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = unitify.transform(model, inputs)
    for training in (True, False):
        found = unitify.verify(model.train(training), module.train(training), inputs)
        assert is_exact(name, found), found.differences or found.rounded_otherwise
        assert found.compared
    if name != "data-dependent branch":
        assert tuple(module.parts) == ("",)


def test_dropout_does_nothing_in_eval() -> None:
    model, inputs = CASES["Dropout"]()
    module = unitify.transform(model, inputs).eval()
    assert torch.equal(module(*inputs), module(*inputs))
    assert torch.equal(module(*inputs), model.eval()(*inputs))


def test_ignored_rows_do_not_count() -> None:
    """The mean is over the rows that count: zero logits give log 8, not less."""
    model, (features, target) = CASES["ignore_index"]()
    nn.init.zeros_(model.lin.weight)
    nn.init.zeros_(model.lin.bias)
    module = unitify.transform(model, (features, target))
    assert module(features, target).item() == pytest.approx(2.0794415)


def test_a_zero_weight_stays_finite() -> None:
    model, inputs = CASES["zero weight"]()
    module = unitify.transform(model, inputs)
    assert torch.equal(module.get_parameter("head.weight"), torch.zeros(4, 8))
