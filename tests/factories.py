"""What ``--model`` and ``--inputs`` name in the tests of the command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TiedLanguageModel(nn.Module):
    """An embedding that is also the head, a buffer that trains, and one that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 24, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("offset", torch.arange(8.0) / 8, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.embedding(ids) + self.offset)
        return self.head(self.norm(hidden.transpose(1, 2)).transpose(1, 2))


class Pair(nn.Module):
    """Two inputs, which no first layer implies."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.linear(x) + shift


class TwoWays(nn.Module):
    """Which way is taken depends on the data: no single graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 16))
        self.left, self.right = nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.left(y) if y.isfinite().all() else self.right(y)


class TwoSides(nn.Module):
    """Which way is taken depends on a size: a recording for each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu() if x.shape[1] > 8 else self.linear(x.sin())


def two_sides() -> nn.Module:
    return TwoSides()


def inputs_two_sides() -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(2, length, 6, generator=generator),) for length in (5, 11)]


def two_ways() -> nn.Module:
    return TwoWays()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))


def wide_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 3))


def deep_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3), nn.Linear(3, 3))


def tied() -> nn.Module:
    return TiedLanguageModel()


def pair() -> nn.Module:
    return Pair()


def inputs_tuple() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)


def inputs_dict() -> dict[str, Tensor]:
    x, shift = inputs_tuple()
    return {"shift": shift, "x": x}


def inputs_batches() -> list[dict[str, Tensor]]:
    return [inputs_dict(), {name: 64 * x for name, x in inputs_dict().items()}]


def inputs_none() -> list[Tensor]:
    return []


def inputs_number() -> int:
    return 3


def inputs_tensor() -> Tensor:
    return inputs_tuple()[0]


def inputs_list_of_tensors() -> list[Tensor]:
    return list(inputs_tuple())


def inputs_misfit() -> tuple[Tensor]:
    return (torch.randn(5, 7),)


def raises() -> nn.Module:
    raise RuntimeError("no GPU here\nand a second line")


def not_a_module() -> dict[str, int]:
    return {}


NOT_CALLABLE = 3


def exits() -> nn.Module:
    raise SystemExit(3)
