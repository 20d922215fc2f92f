"""The models that are measured: five families at two sizes, with random weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

Built = tuple[nn.Module, dict[str, Any]]
VOCABULARY = 1024


@dataclass(frozen=True)
class Size:
    """Width of the model, layers, sequences a batch, and tokens a sequence."""

    name: str
    width: int
    layers: int
    batch: int
    length: int


SIZES = (Size("small", 128, 2, 4, 64), Size("large", 256, 4, 8, 128))


class ResidualNet(nn.Module):
    """Convolutions with batch norms around a residual stream, and a classifier."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
            )
            for _ in range(layers)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        x = self.stem(pixels)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return F.cross_entropy(self.head(x.mean((2, 3))), labels)


def _tokens(size: Size) -> Tensor:
    return torch.randint(0, VOCABULARY, (size.batch, size.length))


def _gpt2(size: Size) -> Built:
    config = GPT2Config(
        n_embd=size.width, n_layer=size.layers, n_head=4, vocab_size=VOCABULARY,
        n_positions=size.length, use_cache=False,
    )  # fmt: skip
    ids = _tokens(size)
    return GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}


def _llama(size: Size) -> Built:
    config = LlamaConfig(
        hidden_size=size.width, intermediate_size=3 * size.width, num_hidden_layers=size.layers,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY, use_cache=False,
    )  # fmt: skip
    ids = _tokens(size)
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def _bert(size: Size) -> Built:
    config = BertConfig(
        hidden_size=size.width, intermediate_size=4 * size.width, num_hidden_layers=size.layers,
        num_attention_heads=4, vocab_size=VOCABULARY,
    )  # fmt: skip
    labels = torch.arange(size.batch) % 2
    return BertForSequenceClassification(config), {"input_ids": _tokens(size), "labels": labels}


def _vit(size: Size) -> Built:
    config = ViTConfig(
        hidden_size=size.width, intermediate_size=4 * size.width, num_hidden_layers=size.layers,
        num_attention_heads=4, image_size=size.length, patch_size=16, num_labels=10,
    )  # fmt: skip
    pixels = torch.randn(size.batch, 3, size.length, size.length)
    labels = torch.arange(size.batch) % 10
    return ViTForImageClassification(config), {"pixel_values": pixels, "labels": labels}


def _cnn(size: Size) -> Built:
    pixels = torch.randn(size.batch, 3, size.length // 2, size.length // 2)
    net = ResidualNet(size.width // 4, size.layers)
    return net, {"pixels": pixels, "labels": torch.arange(size.batch) % 10}


FAMILIES: Mapping[str, Callable[[Size], Built]] = {
    "GPT-2": _gpt2, "Llama": _llama, "BERT": _bert, "ViT": _vit, "residual CNN": _cnn,
}  # fmt: skip


def build(family: str, size: Size) -> Built:
    """A model in train mode without dropout, and a batch with its labels."""
    torch.manual_seed(0)
    model, batch = FAMILIES[family](size)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train(), batch


def loss_of(output: Any) -> Tensor:
    """The loss in what a model returns."""
    return output if isinstance(output, Tensor) else output.loss
