"""Names of a checkpoint that are not the model's: renamed, allowed by the user, or refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import factories
import pytest
import torch
from checkpoints import STATE, Normed, filled, refusal, same, trained, under
from torch import nn
from torch.nn.utils import parametrizations

from unitify.checkpoint.files import read_state_dicts
from unitify.checkpoint.filling import fill


def test_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """Since its second version a batch norm saves its count, and torch asks for it."""
    state = trained().state_dict()
    for name in [name for name in state if "num_batches" in name]:
        del state[name]
    for prefix in ("", "module."):
        renamed = OrderedDict(under(prefix, state))
        renamed._metadata = {  # type: ignore[attr-defined]
            f"{prefix}{path}".removesuffix("."): entry for path, entry in state._metadata.items()
        }
        torch.save(renamed, tmp_path / "it.pt")
        text = refusal(lambda: filled(tmp_path / "it.pt"))
        assert "U603" in text
        assert "missing: body.1.num_batches_tracked" in text
        assert "--allow-missing 'body.1.num_batches_tracked'" in text
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        Normed().load_state_dict(state)


def test_a_prefix_is_taken_only_where_all_then_fits(tmp_path: Path) -> None:
    torch.save({**under("model."), "loss.weight": torch.ones(3)}, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt"))
    assert "U603" in text
    assert "--allow-unexpected" in text
    assert same(filled(tmp_path / "it.pt", unexpected=("loss.*",)))


def test_heads_that_are_missing_or_too_many(tmp_path: Path) -> None:
    state = {name: t for name, t in STATE.items() if not name.startswith("last.")}
    state |= {"top.weight": torch.ones(2), "top.bias": torch.ones(2)}
    torch.save(state, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt"))
    assert "--allow-missing 'last.*' --allow-unexpected 'top.*'" in text
    assert "U603" in refusal(lambda: filled(tmp_path / "it.pt", missing=("last.*",)))
    model = filled(tmp_path / "it.pt", missing=("last.*",), unexpected=("top.*",))
    torch.manual_seed(12)
    expected = Normed().eval()
    expected.load_state_dict(state, strict=False)
    assert same(model, expected)
    messages = " ".join(note.message for note in model.notes)
    assert "last.bias, last.weight" in messages or "last.weight, last.bias" in messages
    assert "top.weight, top.bias" in messages


def test_two_that_fit_are_not_chosen_between(tmp_path: Path) -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "ema": other}, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt"))
    assert "U613" in text
    assert "model, ema" in text


def test_tied_names_with_different_numbers(tmp_path: Path) -> None:
    state = factories.tied().state_dict()
    state["head.weight"] = state["head.weight"] + 1
    torch.save(state, tmp_path / "it.pt")
    text = refusal(lambda: filled(tmp_path / "it.pt", factories.tied))
    assert "U603" in text
    assert "one tensor of the model" in text


def test_a_hook_of_the_model_renames(tmp_path: Path) -> None:
    class Hooked(Normed):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(self.rename)

        @staticmethod
        def rename(module: nn.Module, state_dict: Any, prefix: str, *_: Any) -> None:
            for name in [name for name in state_dict if name.startswith(f"{prefix}final.")]:
                state_dict[name.replace("final.", "last.")] = state_dict.pop(name)

    torch.save({n.replace("last.", "final."): t for n, t in STATE.items()}, tmp_path / "it.pt")
    assert same(filled(tmp_path / "it.pt", Hooked))


def test_old_weight_norm_takes_no_new_names(tmp_path: Path) -> None:
    """Torch has a hook for one direction alone."""
    with pytest.warns(FutureWarning):
        old = torch.nn.utils.weight_norm(nn.Linear(6, 6))
    new = parametrizations.weight_norm(nn.Linear(6, 6))
    torch.save(new.state_dict(), tmp_path / "it.pt")
    assert "U603" in refusal(lambda: fill(old, read_state_dicts(tmp_path / "it.pt")))
    torch.save(old.state_dict(), tmp_path / "it.pt")
    fill(new, read_state_dicts(tmp_path / "it.pt"))
    assert torch.equal(new.weight, old.weight)
