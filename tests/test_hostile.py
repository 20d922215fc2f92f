"""Damaged and made-up input is refused with a code; it runs nothing and writes nothing outside."""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import COUNTS, attempt
from hostile_cases import CASES, PAYLOAD, Evil, config
from hostile_kinds import KINDS, copy_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import unitify
from unitify.cli import app
from unitify.convert import convert, read_source
from unitify.diagnostics import UnitifyError

#: Inputs of each kind that every run tries, and the long one.
FEW, MANY = 40, 1000


def fuzzed(kind: str, folder: Path, count: int) -> None:
    """Change an input ``count`` times, and read it."""
    own = KINDS[kind]
    (folder / "whole").mkdir()
    own.make(folder / "whole")
    own.read(folder / "whole", folder / "never")

    @seed(0)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(number=st.integers(0, 2**63))
    def one(number: int) -> None:
        changed = copy_of(folder / "whole", folder / "changed")
        own.change(changed, random.Random(number))
        out = folder / "out"
        copy_of(folder / "empty", out)
        attempt(kind, out, lambda: own.read(changed, out))

    (folder / "empty").mkdir()
    one()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_changed_inputs(kind: str, tmp_path: Path) -> None:
    fuzzed(kind, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_inputs(kind: str, tmp_path: Path) -> None:
    fuzzed(kind, tmp_path, MANY)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_made_up_inputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line: status 2, and one line with the code; no code runs."""
    make, codes, options = CASES[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    checkpoint = tmp_path / "in" / make(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "in")])
    output = tmp_path / "out" / "it"
    call = ["convert", str(checkpoint), "-o", str(output), "--no-verify", *options]
    found: list[Any] = []
    attempt("made up", tmp_path / "out", lambda: found.append(CliRunner().invoke(app, call)))
    (result,) = found
    COUNTS.executed += [name] if (tmp_path / "in" / PAYLOAD).exists() else []
    if not codes:
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == 2, result.output
        COUNTS.refused["made up"] += 1
        (line,) = result.stderr.splitlines()
        assert line.split()[1] in codes, line
        assert line.isprintable()
        assert not output.exists()
    assert not (tmp_path / "in" / PAYLOAD).exists()


@pytest.mark.filterwarnings("ignore")
def test_code_beside_a_known_model_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers has the class itself, so that the folder is read without its own."""
    monkeypatch.chdir(tmp_path)
    names = {"AutoConfig": "code.MyModel", "AutoModelForCausalLM": "code.MyModel"}
    config(auto_map=names)(tmp_path)
    assert attempt("made up", tmp_path / "out", lambda: read_source(tmp_path, None)) == ""
    assert not (tmp_path / PAYLOAD).exists()


class Trusted(nn.Module):
    """A module that is pickled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("reason", ["I wrote it yesterday", None])
def test_a_pickle_is_run_only_for_a_reason(
    reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan holds the reason. A first refusal is not followed by a second, unsafe way."""
    monkeypatch.chdir(tmp_path)
    model = Trusted()
    torch.save(model, "it.pt")
    torch.save({"state_dict": model.state_dict(), "more": Evil()}, "evil.pt")
    for file, factory in (("it.pt", None), ("evil.pt", "test_hostile:Trusted")):
        output = tmp_path / f"out-{file}"
        act = partial(convert, Path(file), output, model=factory, unsafe_load=reason)
        if reason is None:
            with pytest.raises(UnitifyError, match="--unsafe-load REASON") as caught:
                act()
            assert caught.value.code == "U602"
            assert not output.exists()
            assert not Path(PAYLOAD).exists()
        else:
            act()
            source = json.loads((output / "plan.json").read_text())["source"]
            assert source["unsafe_load"] == reason
            loaded = unitify.load(output, Trusted())
            assert torch.equal(loaded.linear.weight, model.linear.weight)
    assert Path(PAYLOAD).exists() is (reason is not None)
