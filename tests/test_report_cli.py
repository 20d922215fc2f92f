"""``unitify report``: every kind of target, every format, and what it says when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from unitify.cli import app

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def error_of(result: Result) -> str:
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    return line


def test_a_factory_as_text(run: Run) -> None:
    result = run("report", "factories:mlp")
    assert result.exit_code == 0, result.output
    assert "unitify · Sequential" in result.stdout
    assert "measured on 1 batch" in result.stdout
    assert list(Path().iterdir()) == []


def test_measured_on_inputs_as_json(run: Run) -> None:
    options = ("--inputs", "factories:inputs_batches", "--scales", "measured", "--recipe", "fp8")
    result = run("report", "factories:pair", *options, "--format", "json")
    held = json.loads(result.stdout)
    assert (held["target"], held["batches"], held["scales"]) == ("factories:pair", 2, "measured")
    assert held["recipe_is_applied"] is True
    assert all(value["forward"]["measured"] is not None for value in held["values"])


def test_a_converted_folder_has_its_own_scales_and_casts(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(factories.mlp().state_dict(), tmp_path / "mlp.safetensors")
    options = ("--model", "factories:mlp")
    recipe = ("--recipe", "fp8,multiple=1")
    run("convert", "mlp.safetensors", *options, *recipe, "--scales", "measured", "-o", "out")
    plan = json.loads(Path("out/plan.json").read_text())
    result = run("report", "out", *options, "-o", "r.json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout == "written to r.json\n"
    held = json.loads(Path("r.json").read_text())
    exponents = {
        v["name"]: [v["forward"]["exponent"], v["backward"]["exponent"]] for v in held["values"]
    }
    assert exponents == {**plan["values"], **plan["units"]}
    assert {v["backward"]["cast"] for v in held["values"]} == {None, "e5m2"}
    assert held["exact_before_casts"] is True  # when it was converted
    assert "measured on the drawn inputs, because no batches were given" in held["notes"]


def test_a_page_and_its_json(run: Run) -> None:
    result = run("report", "factories:mlp", "-o", "report.html")
    assert result.stdout == "written to report.html\nwritten to report.json\n"
    assert Path("report.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("none",), "U601", "package.module:"),
        (("factories:raises",), "U604", "no GPU here"),
        (("factories:mlp", "--format", "pdf"), "U001", "html"),
        (("factories:mlp", "-o", "report.pdf"), "U001", "pdf"),
        (("factories:mlp", "--recipe", "fp9"), "U401", "fp9"),
        (("factories:mlp", "--drift", "none.jsonl"), "U609", "none.jsonl"),
        (("factories:mlp", "--inputs", "factories:inputs_misfit"), "U102", "shapes"),
        (("factories:mlp", "-o", "none/report.json"), "U606", "none/report.json"),
    ],
)
def test_what_it_cannot(run: Run, arguments: tuple[str, ...], code: str, text: str) -> None:
    line = error_of(run("report", *arguments))
    assert line.startswith(f"error: {code}")
    assert text in line
