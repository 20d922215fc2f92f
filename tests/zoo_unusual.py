"""Models that do what most do not: each found something that was wrong.

``WHOLE`` and ``ISLANDS`` hold factories of a model and the positional inputs of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Any, ...]]


class Forward(nn.Module):
    """A module around a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def recurrent_residual() -> Built:
    """Both directions read one value, to whose gradient another operation adds, too."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        h = m.into(x)
        return m.out(m.lstm(h)[0] + h)

    lstm = nn.LSTM(6, 3, bidirectional=True)
    return Forward(forward, into=nn.Linear(4, 6), lstm=lstm, out=nn.Linear(6, 2)), (
        torch.randn(7, 2, 4),
    )


def recurrent_shared() -> Built:
    """One recurrent layer for two sequences, and its last state."""

    def forward(m: Forward, a: Tensor, b: Tensor) -> Tensor:
        first, second = (m.gru(m.embedding(x))[1][-1] for x in (a, b))
        return F.cosine_similarity(first, second)

    gru = nn.GRU(6, 5, num_layers=2, bidirectional=True)
    tokens = torch.randint(0, 20, (11, 3))
    return Forward(forward, embedding=nn.Embedding(20, 6), gru=gru), (tokens[:5], tokens[5:])


def writes_its_input() -> Built:
    def forward(m: Forward, x: Tensor) -> Tensor:
        x.mul_(2.0)
        return m.linear(x) + x[:, :1]

    return Forward(forward, linear=nn.Linear(4, 4)), (torch.randn(3, 4),)


def sparse_gradient() -> Built:
    embedding = nn.Embedding(10, 4, sparse=True)
    return nn.Sequential(embedding, nn.Linear(4, 2)), (torch.randint(0, 10, (3, 5)),)


def target_without_derivative() -> Built:
    def forward(m: Forward, x: Tensor, target: Tensor) -> Tensor:
        return F.soft_margin_loss(m.linear(x), target)

    return Forward(forward, linear=nn.Linear(4, 3)), (torch.randn(5, 4), torch.randn(5, 3).sign())


def lazy() -> Built:
    layers = nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    return nn.Sequential(*layers), (torch.randn(4, 2, 8),)


def empty_batch() -> Built:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(0, 4),)


def autocast_inside() -> Built:
    """A nested graph, which a copy of the module has to have, too."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = m.second(F.relu(m.first(x)))
        return h.float().softmax(-1)

    return Forward(forward, first=nn.Linear(4, 8), second=nn.Linear(8, 8)), (torch.randn(6, 4),)


def conditional() -> Built:
    def forward(m: Forward, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, m.left.forward, m.right.forward, (x,))

    return Forward(forward, left=nn.Linear(4, 8), right=nn.Linear(4, 8)), (torch.randn(3, 4),)


def names_of_our_own() -> Built:
    """Submodules with the names of attributes that a transformed module has."""
    names = "graph", "plan", "capture", "run", "parts", "code", "recipe", "host", "diagnostics"

    def forward(m: Forward, x: Tensor) -> Tensor:
        for name in names:
            x = torch.tanh(dict(m.named_children())[name](x))
        return x

    made = Forward(forward)
    made._modules.update({name: nn.Linear(4, 4) for name in names})
    return made, (torch.randn(3, 4),)


def two_names_of_a_module() -> Built:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.GELU(), layer, nn.Linear(4, 2)), (torch.randn(3, 4),)


def not_a_number() -> Built:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    return model, (torch.randn(3, 4),)


def nearly_dead_weights() -> Built:
    """Numbers below the normal range among large ones, which a smaller scale would round."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(40.0)
        model[0].weight[0] = 3e-43
    return model, (torch.randn(3, 4),)


def mask_by_a_product() -> Built:
    """Few ones times ``finfo.min``, and a row of them: infinities there would be no number."""

    def forward(m: Forward, x: Tensor, keep: Tensor) -> Tensor:
        hidden = (1.0 - keep) * torch.finfo(x.dtype).min
        scores = m.query(x) @ m.key(x).transpose(-1, -2) + hidden[:, None, :]
        return scores.softmax(-1) @ m.value(x)

    keep = torch.ones(40, 5)
    keep[0] = 0.0
    layers = {name: nn.Linear(4, 4) for name in ("query", "key", "value")}
    return Forward(forward, **layers), (torch.randn(40, 5, 4), keep)


# -- in islands ----------------------------------------------------------------------------


def island_writes_its_input() -> Built:
    """What an island writes into its input reaches the code around it, with its history."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.first(x)
        if y.mean() > -5:
            y = m.second(y) + y
        return m.third(y) + y[:, :3]

    return Forward(
        forward,
        first=nn.Linear(4, 8),
        second=nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)),
        third=nn.Sequential(nn.SiLU(inplace=True), nn.Linear(8, 3)),
    ), (torch.randn(3, 4),)


def momentum_encoder() -> Built:
    """A second encoder follows the first, behind autograd's back, in every call."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        first = m.first(x)
        if first.shape[0]:
            for p, q in zip(m.second.parameters(), m.first.parameters(), strict=True):
                p.data.mul_(0.9).add_(q.data, alpha=0.1)
        return F.cosine_similarity(m.head(first), m.second(x).detach())

    layers = {"first": nn.Linear(4, 6), "second": nn.Linear(4, 6), "head": nn.Linear(6, 6)}
    return Forward(forward, **layers), (torch.randn(3, 4),)


def connectionist() -> Built:
    """A recurrent layer as an island of its own: its operations are not taken apart."""

    def forward(m: Forward, x: Tensor, labels: Tensor, sizes: Tensor, lengths: Tensor) -> Tensor:
        logs = m.head(m.lstm(x)[0]).log_softmax(-1)
        return F.ctc_loss(logs, labels, sizes, lengths, zero_infinity=True)

    model = Forward(forward, lstm=nn.LSTM(4, 6, bidirectional=True), head=nn.Linear(12, 6))
    labels = torch.randint(1, 6, (2, 3))
    return model, (torch.randn(9, 2, 4), labels, torch.tensor([9, 7]), torch.tensor([3, 2]))


def packed_sequence() -> Built:
    def forward(m: Forward, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            m.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        return m.head(nn.utils.rnn.pad_packed_sequence(m.lstm(packed)[0], batch_first=True)[0])

    embedding, lstm = nn.Embedding(20, 6), nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    model = Forward(forward, embedding=embedding, lstm=lstm, head=nn.Linear(8, 3))
    return model, (torch.randint(0, 20, (3, 7)), torch.tensor([7, 5, 3]))


def hook_on_a_gradient() -> Built:
    def forward(m: Forward, x: Tensor) -> Tensor:
        y = m.first(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: 2.0 * gradient)
        return m.second(y)

    return Forward(forward, first=nn.Linear(4, 4), second=nn.Linear(4, 4)), (torch.randn(3, 4),)


def adaptive_softmax() -> Built:
    """Of some clusters there may be no example at all: sizes of zero."""
    loss = nn.AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10])

    def forward(m: Forward, x: Tensor, labels: Tensor) -> Tensor:
        return m.loss(m.linear(x), labels).loss

    return Forward(forward, linear=nn.Linear(4, 8), loss=loss), (
        torch.randn(6, 4),
        torch.randint(0, 5, (6,)),
    )


def an_argument_named_self() -> Built:
    class Odd(nn.Module):
        def __init__(this) -> None:
            super().__init__()
            this.linear = nn.Linear(4, 4)

        def forward(this, self: Tensor) -> Tensor:
            return this.linear(self)

    return Odd(), (torch.randn(3, 4),)


def of_no_length() -> Built:
    """False where a truth is asked for: a module may have a length, and that be zero."""

    class Empty(nn.Linear):
        def __len__(self) -> int:
            return 0

    return Empty(4, 4), (torch.randn(3, 4),)


def compiled_before() -> Built:
    """What ``torch.compile`` returned stands for the model in it."""
    torch._dynamo.reset()  # of what other tests have compiled
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    return torch.compile(model, backend="eager"), (torch.randn(3, 4),)


def differential_equation() -> Built:
    """Its loss holds the derivative of its network: the backward pass runs through two."""

    def forward(m: Forward, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        y = m.network(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return (slope + y).square().mean()

    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    return Forward(forward, network=network), (torch.randn(5, 1),)


WHOLE: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        recurrent_residual, recurrent_shared, writes_its_input, sparse_gradient,
        target_without_derivative, lazy, empty_batch, autocast_inside, conditional,
        names_of_our_own, two_names_of_a_module, not_a_number, nearly_dead_weights,
        mask_by_a_product, of_no_length, compiled_before,
    )
}  # fmt: skip
ISLANDS: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        island_writes_its_input, momentum_encoder, connectionist, packed_sequence,
        hook_on_a_gradient, adaptive_softmax, an_argument_named_self,
        differential_equation,
    )
}  # fmt: skip
