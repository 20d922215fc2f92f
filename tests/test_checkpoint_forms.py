"""Checkpoints as people have them: loaded as torch would, bit for bit, or refused by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from checkpoints import (
    MODEL,
    STATE,
    Evil,
    Normed,
    X,
    filled,
    optimizer_state,
    refusal,
    same,
    trained,
    under,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

import unitify
from unitify.checkpoint.files import read_state_dicts
from unitify.checkpoint.filling import Allowed, fill
from unitify.cli import app
from unitify.convert import convert


class Inner(nn.Module):
    """A model below the name ``model``, as Lightning's modules have it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Normed()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def lightning() -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(under("model.")),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [optimizer_state()],
        "lr_schedulers": [],
    }


def averaged() -> dict[str, Any]:
    average = AveragedModel(Normed())
    for _ in range(3):
        average.update_parameters(MODEL)
    average.module.load_state_dict(STATE)
    return average.state_dict()


def compiled_inside() -> dict[str, Any]:
    def wrapped(name: str) -> str:
        return name.replace("body.", "body._orig_mod.").replace("last.", "_orig_mod.last.")

    return {wrapped(name): tensor for name, tensor in STATE.items()}


def old_names() -> dict[str, Any]:
    """As ``torch.nn.utils.weight_norm`` has them."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in STATE.items()
    }


PICKLES: dict[str, Callable[[], Any]] = {
    "plain": lambda: STATE,
    "data parallel": lambda: under("module."),
    "compiled": lambda: under("_orig_mod."),
    "both": lambda: under("module._orig_mod."),
    "any prefix": lambda: under("student.backbone."),
    "compiled inside": compiled_inside,
    "nested": lambda: {"model": STATE, "optimizer": optimizer_state(), "epoch": 3},
    "model_state_dict": lambda: {"model_state_dict": STATE, "loss": 0.5},
    "ema": lambda: {"ema": {"module": STATE, "decay": 0.99}, "step": 7},
    "nested and parallel": lambda: {"net": under("module."), "args": {"lr": 0.1}},
    "lightning": lightning,
    "averaged": averaged,
    "old weight norm": old_names,
    "batch norm of old": lambda: {n: t for n, t in STATE.items() if "num_batches" not in n},
    "with versions": lambda: trained().state_dict(),
}


@pytest.mark.parametrize("name", PICKLES)
def test_what_training_scripts_save(tmp_path: Path, name: str) -> None:
    torch.save(PICKLES[name](), tmp_path / "it.pt")
    model = filled(tmp_path / "it.pt")
    assert same(model)
    quiet = name in ("plain", "old weight norm", "batch norm of old", "with versions")
    assert bool(model.notes) is not quiet
    assert {note.code for note in model.notes} <= {"U612"}


FLAT = [name for name, made in PICKLES.items() if name not in ("lightning",) and all(
    isinstance(value, Tensor) for value in made().values())]  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_the_same_as_safetensors(tmp_path: Path, name: str) -> None:
    save_file({n: t.clone() for n, t in PICKLES[name]().items()}, tmp_path / "it.safetensors")
    assert same(filled(tmp_path / "it.safetensors"))


def test_a_factory_with_the_prefix_needs_none_taken(tmp_path: Path) -> None:
    torch.save(lightning(), tmp_path / "it.ckpt")
    assert torch.equal(filled(tmp_path / "it.ckpt", Inner)(X), MODEL(X))


@pytest.mark.parametrize(
    "made", [{"args": Evil(), "state_dict": STATE}, Evil()], ids=["beside", "it"]
)
def test_what_needs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(made, tmp_path / "it.pt")
    assert "U602" in refusal(lambda: read_state_dicts(tmp_path / "it.pt"))
    assert not (tmp_path / "evil").exists()


def test_weights_for_a_factory_without_memory(tmp_path: Path) -> None:
    def empty() -> nn.Module:
        with torch.device("meta"):
            return factories.mlp()

    state = factories.mlp().state_dict()
    torch.save(state, tmp_path / "it.pt")
    model = empty()
    fill(model, read_state_dicts(tmp_path / "it.pt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    del state["0.bias"]
    torch.save(state, tmp_path / "it.pt")
    given = read_state_dicts(tmp_path / "it.pt")
    allowed = Allowed(missing=("0.bias",))
    assert "U603" in refusal(lambda: fill(empty(), given, "", allowed))


def test_notes_are_in_the_report(tmp_path: Path) -> None:
    state = {f"module.{name}": t for name, t in factories.mlp().state_dict().items()}
    torch.save({"model": state}, tmp_path / "it.pt")
    report = convert(tmp_path / "it.pt", tmp_path / "out", model="factories:mlp")
    messages = [note.message for note in report.left_out if note.code == "U612"]
    assert len(messages) == 2
    loaded = unitify.load(tmp_path / "out", factories.mlp())
    assert all(torch.equal(t, state[f"module.{n}"]) for n, t in loaded.state_dict().items())


def test_the_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = factories.mlp().state_dict()
    del state["2.bias"]
    torch.save({**state, "loss.weight": torch.ones(2)}, "it.pt")
    call = ["convert", "it.pt", "--model", "factories:mlp", "-o", "out"]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 2
    options = ["--allow-missing", "2.bias", "--allow-unexpected", "loss.weight"]
    assert "--allow-missing '2.bias' --allow-unexpected 'loss.weight'" in refused.stderr
    result = CliRunner().invoke(app, [*call, *options])
    assert result.exit_code == 0, result.output
    assert "2.bias" in result.stdout
