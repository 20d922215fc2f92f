"""What makes each diagnostic of checkpoints and folders appear."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import factories
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from triggers import Found, triggers

import unitify
import unitify.diagnostics
from unitify.capture.inputs import infer_inputs
from unitify.checkpoint import folder
from unitify.checkpoint.files import mapped_weights, read_state_dicts
from unitify.checkpoint.filling import fill
from unitify.checkpoint.new_folder import check_absent, new_folder
from unitify.checkpoint.original import write_original
from unitify.checkpoint.targets import build_model
from unitify.convert import convert
from unitify.recipe.recipe import RECIPES
from unitify.serve.export import export
from unitify.serve.mapped import mapped_model
from unitify.serve.onnx_folder import exported
from unitify.serve.reopened import in_transformers, reopened


def saved(path: Path) -> Path:
    save_file(factories.mlp().state_dict(), path / "mlp.safetensors")
    return path / "mlp.safetensors"


@triggers("U601")
def _(path: Path) -> None:
    read_state_dicts(path / "none.pt")


@triggers("U602")
def _(path: Path) -> None:
    torch.save(factories.mlp(), path / "module.pt")
    read_state_dicts(path / "module.pt")


@triggers("U603")
def _(path: Path) -> None:
    convert(saved(path), path / "out", model="factories:wide_mlp")


@triggers("U604")
def _(path: Path) -> None:
    build_model("factories:raises")


@triggers("U605")
def _(path: Path) -> None:
    check_absent(path)


@triggers("U606")
def _(path: Path) -> None:
    check_absent(saved(path) / "out")


@triggers("U407")
def _(path: Path) -> Found:
    return list(unitify.transform(factories.mlp(), recipe="fp8,kv_cache=e4m3").diagnostics)


@triggers("U408")
def _(path: Path) -> None:
    unitify.kv_cache(unitify.transform(factories.mlp(), recipe="fp8"))


@triggers("U617")
def _(path: Path) -> None:
    with new_folder(path / "out"), new_folder(path / "out"):
        pass


@triggers("U607")
def _(path: Path) -> None:
    unitify.load(path, factories.mlp())


@triggers("U609")
def _(path: Path) -> None:
    unitify.transform(factories.mlp()).report(drift=path / "none.jsonl")


@triggers("U610")
def _(path: Path) -> None:
    torch.save(unitify.transform(factories.mlp()), path / "module.pt")


@triggers("U611")
def _(path: Path) -> None:
    (path / "adapter_config.json").write_text("{}")
    read_state_dicts(path)


@triggers("U612")
def _(path: Path) -> Found:
    state = {f"module.{name}": t for name, t in factories.mlp().state_dict().items()}
    return list(fill(factories.mlp(), {"": state}))


@triggers("U613")
def _(path: Path) -> None:
    state = factories.mlp().state_dict()
    fill(factories.mlp(), {"model": state, "ema": state})


def _language_model(path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("compressed_tensors")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, intermediate_size=64, vocab_size=64,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path / "model")
    return path / "model"


@triggers("U614")
def _(path: Path) -> None:
    export(_language_model(path), path / "out", RECIPES["fp8-amax"], "compressed-tensors")


@triggers("U615")
def _(path: Path) -> None:
    model, _ = mapped_model(_language_model(path), mapped_weights(path / "model"))
    (path / "other").mkdir()
    reopened(path / "other", model, [infer_inputs(model)], 6.0, partial(in_transformers, model))


@triggers("U616")
def _(path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 16))
    module = unitify.transform(net, (torch.randn(4, 16),), recipe="fp8")
    folder.write(path / "out", module, {})
    write_original(folder.read(path / "out"), path / "back")


@triggers("U619")
def _(path: Path) -> Found:
    pytest.importorskip("transformers")
    recipe = RECIPES["fp8"]
    return list(export(_language_model(path), path / "out", recipe, "modelopt").notes)


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigh(x @ x.mT).eigenvalues


@triggers("U620")
def _(path: Path) -> None:
    pytest.importorskip("onnxscript")
    exported(Eigenvalues(), ((torch.randn(4, 4),), {}))
