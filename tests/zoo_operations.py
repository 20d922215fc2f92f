"""Small models for kinds of operations: structures, writes, functions, losses, spectra, indices.

See ``zoo`` for what a model is built with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_transformers import Built


@dataclasses.dataclass
class Prediction:
    loss: Tensor
    scores: Tensor
    parts: list[Tensor]
    count: Tensor


class Structured(nn.Module):
    """Several inputs by keyword only, a nested structure in, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, *, pair: tuple[Tensor, Tensor], options: dict[str, Tensor]) -> Prediction:
        a, b = self.left(pair[0]), self.right(pair[1])
        scores = torch.where(options["use"], a, b) * options["weight"]
        return Prediction(scores.square().mean(), scores, [a, b], options["use"].sum())


def structured() -> Built:
    options = {"use": torch.rand(5, 1) > 0.5, "weight": torch.rand(5, 4)}
    return Structured(), (), {"pair": (torch.randn(5, 8), torch.randn(5, 6)), "options": options}


class InPlace(nn.Module):
    """Writes through views, slices and indices, and a buffer that the model keeps itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.first = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
            self.calls += 1
        y = self.linear(x - self.average)
        y[:, 0] = self.first
        y[..., 2:4].mul_(2.0)
        half = y.view(-1, 8)[:, 4:]
        half += 0.5
        y.transpose(0, 1)[1].clamp_(-1.0, 1.0)
        index = torch.arange(2)
        y[index, index] = y[index, index] * 0.25
        z = torch.zeros_like(y)
        z.copy_(y)
        return F.relu_(z) + y


def in_place() -> Built:
    return InPlace(), (torch.randn(3, 4, 8),), {}


class StochasticDepth(nn.Module):
    """Whole branches dropped at random in training, a second head in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head, self.auxiliary = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            y = F.gelu(layer(x))
            if self.training:
                keep = y.new_empty(y.shape[0], 1).bernoulli_(0.8)
                y = y * keep.div_(0.8)
            x = x + y
        if self.training:
            return {"logits": self.head(x), "auxiliary": self.auxiliary(x)}
        return {"logits": self.head(x)}


def stochastic_depth() -> Built:
    return StochasticDepth(), (torch.randn(6, 8),), {}


class Functions(nn.Module):
    """Elementwise functions, roots, powers, reductions and sorting, each on its own branch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        p = x.square() + 0.1
        smooth = (
            F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.mish(x) + F.softplus(x)
            + F.elu(x) + F.selu(x) + F.hardswish(x) + F.hardsigmoid(x) + F.relu6(x) + F.softsign(x)
            + F.logsigmoid(x) + torch.erf(x) + torch.sin(x) + torch.cos(x) + torch.atan(x)
        )  # fmt: skip
        roots = p.sqrt() + p.rsqrt() + p**0.5 + p**1.5 + p**-1 + torch.log(p) + torch.exp(-p)
        shape = x.cumsum(-1) + x.flip(-1) + x.roll(1, -1) + torch.tril(x) + x.abs().log1p()
        reduced = (
            x.mean(-1, keepdim=True) + x.var(-1, keepdim=True) + x.std(0) + x.amax(-1, keepdim=True)
            + x.norm(dim=-1, keepdim=True) + x.logsumexp(-1, keepdim=True) + x.prod(-1, True) * 1e-3
            + torch.linalg.vector_norm(x, dim=0) + x.median(-1, keepdim=True).values
            + x.max(0).values + x.min() + x.sort(-1).values + x.cumprod(-1)
        )  # fmt: skip
        bounded = torch.clamp(x, -1, 1) + torch.maximum(x, p) + torch.minimum(x, 2 * p) + x.sign()
        mixed = torch.lerp(x, p, 0.25) + torch.addcmul(x, x, p, value=0.5) + torch.hypot(x, p)
        return F.normalize(smooth + roots + shape + bounded + mixed, dim=-1) + reduced


def functions() -> Built:
    return Functions(), (torch.randn(12, 12),), {}


class Losses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)
        self.register_buffer("classes", torch.rand(5) + 0.5)

    def forward(self, x: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        y = self.linear(x)
        logs = y.log_softmax(-1)
        one = F.cross_entropy(y, labels, weight=self.classes, label_smoothing=0.1)
        two = F.nll_loss(logs, labels, ignore_index=1) + F.mse_loss(y, target)
        three = F.l1_loss(y, target) + F.smooth_l1_loss(y, target) + F.huber_loss(y, target)
        four = F.binary_cross_entropy_with_logits(y, target.sigmoid())
        five = F.kl_div(logs, target.softmax(-1), reduction="batchmean")
        six = F.cosine_similarity(y, target).mean() + F.poisson_nll_loss(y, target.exp())
        seven = F.binary_cross_entropy(y.sigmoid(), target.sigmoid())
        per_token = F.cross_entropy(y, labels, reduction="none")
        return one + two + three + four + five + six + seven + (per_token * per_token).mean()


def losses() -> Built:
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    return Losses(), (torch.randn(6, 8), labels, torch.randn(6, 5)), {}


class Fourier(nn.Module):
    """Complex numbers inside: a learned filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(9, 2))
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.mix(x)) * torch.view_as_complex(self.filter)
        return torch.fft.irfft(spectrum, n=16) + spectrum.abs().mean()


def fourier() -> Built:
    return Fourier(), (torch.randn(3, 16),), {}


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.bilinear = nn.Bilinear(8, 8, 4)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.spectral(self.normed(x)))
        return self.bilinear(x, y)


def parametrized() -> Built:
    return Parametrized(), (torch.randn(4, 8),), {}


class GraphNet(nn.Module):
    """Message passing by index: gather, index_add and scatter_reduce."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(8, 8), nn.Linear(16, 8)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        messages = F.relu(self.message(nodes[source]))
        summed = torch.zeros_like(nodes).index_add(0, target, messages)
        index = target[:, None].expand(-1, 8)
        largest = torch.zeros_like(nodes).scatter_reduce(0, index, messages, "amax")
        return self.update(torch.cat([nodes, summed], -1)) + largest


def graph_network() -> Built:
    return GraphNet(), (torch.randn(6, 8), torch.randint(0, 6, (2, 14))), {}


class Diffusion(nn.Module):
    """A sinusoidal time embedding modulates a normalized image; weights are standardized."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8, affine=False)
        self.out = nn.Sequential(nn.PixelShuffle(2), nn.Upsample(scale_factor=0.5))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        frequencies = torch.exp(-torch.arange(4) / 2.0).to(x.dtype)
        angles = t[:, None].to(x.dtype) * frequencies
        scale, shift = self.time(torch.cat([angles.sin(), angles.cos()], -1)).chunk(2, -1)
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        y = self.norm(F.conv2d(x, w, self.conv.bias, padding=1))
        y = F.glu(torch.cat([y, y], 1), 1) * (1 + scale[..., None, None]) + shift[..., None, None]
        return self.out(F.pad(y, (1, 1, 0, 0), mode="reflect")[..., 1:-1])


def diffusion() -> Built:
    return Diffusion(), (torch.randn(2, 3, 8, 8), torch.tensor([3, 40])), {}


#: Every model of this page, by name.
OPERATIONS: dict[str, Callable[[], Built]] = {
    function.__name__: function
    for function in (
        structured,
        in_place,
        stochastic_depth,
        functions,
        losses,
        fourier,
        parametrized,
        graph_network,
        diffusion,
    )
}
