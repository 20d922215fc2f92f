"""A model in every layout of runtimes, for the tests that open, damage or compare such folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from unitify.cli import app
from unitify.recipe.reader import read_recipe
from unitify.serve.export import export
from unitify.serve.writing import Export

#: Recipe and format, by the layout that they make.
MADE = {
    "fp8": ("fp8", "compressed-tensors"),
    "fp8-dynamic": ("fp8", "fp8-dynamic"),
    "fp8-block": ("fp8", "fp8-block"),
    "nvfp4": ("nvfp4", "compressed-tensors"),
    "mxfp4": ("mxfp4", "compressed-tensors"),
    "mxfp8": ("mxfp8", "compressed-tensors"),
    "modelopt-fp8": ("fp8", "modelopt"),
    "modelopt-nvfp4": ("nvfp4", "modelopt"),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with grouped keys, in shards, whose layers differ in size."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, num_hidden_layers=2, intermediate_size=256, vocab_size=128,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for layer, factor in zip(model.model.layers, (3.0, 0.3), strict=True):
            layer.self_attn.q_proj.weight.mul_(factor)
            layer.mlp.up_proj.weight.mul_(1 / factor)
    folder = tmp_path_factory.mktemp("served") / "llama"
    model.save_pretrained(folder, max_shard_size="300KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


class Made(dict[str, tuple[Path, Export]]):
    """A folder for each layout, written when it is asked for."""

    def __init__(self, source: Path, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self.source, self.factory = source, factory

    def __missing__(self, name: str) -> tuple[Path, Export]:
        recipe, format = MADE[name]
        read = read_recipe(recipe)
        assert read is not None
        folder = self.factory.mktemp("out") / name
        self[name] = folder, export(self.source, folder, read, format)
        return self[name]


@pytest.fixture(scope="session")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every layout of it."""
    return Made(source, tmp_path_factory)


def damaged(folder: Path, tmp_path: Path, change: Any) -> Path:
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x80
    file.write_bytes(data)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))
