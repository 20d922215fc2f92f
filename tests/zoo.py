"""Small models of every kind, each with example inputs: what exactness is tested on.

``MODELS`` holds the models that every property is tested on; ``ARCHITECTURES`` further tiny
transformers models, built from their config alone. Each entry builds, under a fixed seed, a
model and the keyword or positional inputs of one call (with labels where the model takes them).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import zoo_transformers
from torch import Tensor, nn
from zoo_language import LANGUAGE
from zoo_operations import OPERATIONS
from zoo_senses import SENSES
from zoo_transformers import Built

MODELS: dict[str, Callable[[], Built]] = zoo_transformers.factories(zoo_transformers.MAIN)
ARCHITECTURES: dict[str, Callable[[], Built]] = zoo_transformers.factories(
    {**zoo_transformers.OTHERS, **LANGUAGE, **SENSES}
)


def build(name: str, dtype: torch.dtype = torch.float32) -> Built:
    """The model of this name in train mode, and its (positional, keyword) inputs."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, args, kwargs = {**MODELS, **ARCHITECTURES}[name]()
    if dtype != torch.float32:
        model = model.to(dtype)
        args = tuple(cast(x, dtype) for x in args)
        kwargs = {key: cast(value, dtype) for key, value in kwargs.items()}
    return model.train(), args, kwargs


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A floating tensor (or those in a list) in another precision; anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, list | tuple):
        return type(value)(cast(v, dtype) for v in value)
    return value


def model(function: Callable[[], Built]) -> Callable[[], Built]:
    MODELS[function.__name__] = function
    return function


def ids(*shape: int, vocabulary: int = 99) -> Tensor:
    return torch.randint(2, vocabulary, shape)


def padding(batch: int, length: int) -> Tensor:
    """A mask of ones that ends earlier in each further row."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        mask[row, length - 2 * row :] = 0
    return mask


# -- plain torch ------------------------------------------------------------------------


@model
def mlp() -> Built:
    net = nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.Tanh(),
        nn.LayerNorm(32), nn.Linear(32, 8),
    )  # fmt: skip
    return net, (torch.randn(8, 16),), {}


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.first(x)))
        y = self.norm2(self.second(y))
        y += x
        return self.act(y)


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.blocks = nn.Sequential(Residual(8), nn.MaxPool2d(2), Residual(8))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.blocks(self.stem(images)))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@model
def residual_cnn() -> Built:
    return ResidualCNN(), (torch.randn(4, 3, 12, 12), torch.randint(0, 5, (4,))), {}


class RecurrentLM(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16, padding_idx=0)
        self.recurrent = kind(16, 24, num_layers=2, batch_first=True, **options)
        width = 48 if options.get("bidirectional") else 24
        self.head = nn.Linear(width, 50)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden, _ = self.recurrent(self.embedding(tokens[:, :-1]))
        logits = self.head(hidden)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()), logits


@model
def lstm() -> Built:
    return RecurrentLM(nn.LSTM, dropout=0.2), (ids(3, 9, vocabulary=50),), {}


@model
def gru() -> Built:
    return RecurrentLM(nn.GRU, bidirectional=True), (ids(3, 9, vocabulary=50),), {}


class LSTMWithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 8)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        return self.cell(x, state)


@model
def lstm_state() -> Built:
    state = (torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    return LSTMWithState(), (torch.randn(5, 3, 6), state), {}


class CellLoop(nn.Module):
    """Recurrent cells, unrolled over a fixed number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(6, 8), nn.GRUCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = c = g = x.new_zeros(x.shape[0], 8)
        outputs = []
        for step in range(4):
            h, c = self.lstm(x[:, step], (h, c))
            g = self.gru(h, g)
            outputs.append(g)
        return torch.stack(outputs, 1)


@model
def recurrent_cells() -> Built:
    return CellLoop(), (torch.randn(3, 4, 6),), {}


class MixedConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.line = nn.Conv1d(4, 4, 3, padding="same")
        self.up1 = nn.ConvTranspose1d(4, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.depthwise(F.leaky_relu(self.grouped(x)))))
        y = F.avg_pool2d(self.up(y), 2) + F.interpolate(x, scale_factor=0.5)
        return self.up1(F.elu(self.line(y.flatten(2))))


@model
def mixed_convolutions() -> Built:
    return MixedConvolutions(), (torch.randn(2, 4, 8, 8),), {}


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv3d(2, 4, 3, padding=1), nn.ConvTranspose3d(4, 2, 2, stride=2)
        self.norm = nn.InstanceNorm3d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool3d(F.mish(self.norm(self.conv(x))), 2)
        return self.up(y) + x


@model
def volume_net() -> Built:
    return Volume(), (torch.randn(2, 2, 4, 4, 4),), {}


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)])
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.up = nn.ModuleList([nn.Conv2d(32, 8, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)])
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        skips = []
        for layer in self.down:
            x = F.relu(layer(x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = F.dropout2d(self.norm(self.middle(x)), 0.1, self.training)
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.relu(layer(torch.cat([x, skips.pop()], 1)))
        logits = self.head(x)
        return F.binary_cross_entropy(torch.sigmoid(logits), mask), logits


@model
def unet() -> Built:
    return UNet(), (torch.randn(2, 3, 8, 8), (torch.rand(2, 1, 8, 8) < 0.5).float()), {}


class Experts(nn.Module):
    """A mixture of experts with top-k routing, every expert computed and weighted."""

    def __init__(self, width: int = 16, experts: int = 4, top: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) / (2 * width) ** 0.5)
        self.top = top

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self.router(x).softmax(-1)
        weight, chosen = probabilities.topk(self.top, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        gate = torch.zeros_like(probabilities).scatter(-1, chosen, weight)
        hidden = F.silu(torch.einsum("btd,edh->beth", x, self.up))
        expert = torch.einsum("beth,ehd->betd", hidden, self.down)
        balance = (probabilities.mean((0, 1)) ** 2).sum()
        return x + torch.einsum("betd,bte->btd", expert, gate), balance


@model
def experts() -> Built:
    return Experts(), (torch.randn(2, 6, 16),), {}


class Shared(nn.Module):
    """One block applied twice, one linear used at two depths, one weight used transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.twice = nn.Linear(16, 16)
        self.autoencoder = nn.Parameter(torch.randn(4, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.twice(self.block(x)))
        return F.linear(F.linear(self.twice(y), self.autoencoder), self.autoencoder.t())


@model
def shared_layers() -> Built:
    return Shared(), (torch.randn(5, 16),), {}


@model
def transformer_encoder() -> Built:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    mask = padding(3, 7) == 0
    return net, (torch.randn(3, 7, 16),), {"src_key_padding_mask": mask}


@model
def transformer() -> Built:
    net = nn.Transformer(16, 4, 1, 1, 32, dropout=0.1, batch_first=True, norm_first=True)
    causal = nn.Transformer.generate_square_subsequent_mask(6)
    kwargs = {"tgt_mask": causal, "tgt_is_causal": True}
    return net, (torch.randn(2, 5, 16), torch.randn(2, 6, 16)), kwargs


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x, attn_mask=mask)


@model
def multihead_attention() -> Built:
    mask = torch.triu(torch.full((6, 6), -torch.inf), 1)
    return SelfAttention(), (torch.randn(2, 6, 16), mask), {}


class MaskedAttention(nn.Module):
    """Attention by hand: scores filled with the format's minimum, rows fully masked."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(-1, -2) / 4.0
        hidden = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        inner = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden.detach().clamp(max=0.0))
        return hidden.softmax(-1) @ v + inner


@model
def masked_attention() -> Built:
    keep = torch.rand(2, 6, 6) > 0.3
    keep[0, 2] = False
    return MaskedAttention(), (torch.randn(2, 6, 16), keep), {}


MODELS |= OPERATIONS
