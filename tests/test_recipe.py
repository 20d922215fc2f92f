"""Recipes as data: read, refused, named by a project, and shown by a conversion."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import unitify
from unitify.cli import app
from unitify.diagnostics import UnitifyError
from unitify.formats.table import BF16, E4M3, E5M2
from unitify.recipe.reader import configured_recipe, read_recipe
from unitify.recipe.recipe import FP8, RECIPES, Recipe

# -- how a recipe is written ------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_is_read_back(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe is not None
    assert recipe.name == name
    assert read_recipe(recipe.as_table()) == recipe
    assert read_recipe(recipe) is recipe


def test_one_recipe_written_in_four_ways(tmp_path: Path) -> None:
    made = dataclasses.replace(
        FP8,
        name="mine",
        attention=True,
        exclude=("lm_head", "*.gate"),
        multiple=1,
        branch_ends=BF16,
    )
    table = {
        "base": "fp8", "name": "mine", "attention": True, "exclude": ["lm_head", "*.gate"],
        "multiple": 1, "branch_ends": "bf16",
    }  # fmt: skip
    lines = [
        'name = "mine"', "attention = true", 'exclude = ["lm_head", "*.gate"]', "multiple = 1",
        'branch_ends = "bf16"',
    ]  # fmt: skip
    text = "fp8,name=mine,attention=true,exclude=lm_head+*.gate,multiple=1,branch_ends=bf16"
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    (tmp_path / "pyproject.toml").write_text("[tool.unitify.recipe]\n" + "\n".join(lines))
    assert read_recipe(table) == made
    assert read_recipe(text) == made
    assert read_recipe(tmp_path / "mine.toml") == made
    assert configured_recipe(tmp_path) == made
    assert read_recipe(made.as_table()) == made


def test_a_project_may_name_its_recipe_or_none(tmp_path: Path) -> None:
    assert configured_recipe(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nrecipe = 3")
    assert configured_recipe(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text('[tool.unitify]\nrecipe = "fp16"')
    assert configured_recipe(tmp_path) == RECIPES["fp16"]


BAD = [
    ("fp9", "U401", "'fp9'"),
    ({"base": "fp9"}, "U401", "'fp9'"),
    ("fp8,exlude=lm_head", "U402", "'exlude' is none of"),
    ("fp8,attention", "U402", "'attention' is not of the form key=value"),
    ("fp8,attention=yes", "U402", "attention is 'yes'"),
    ("fp8,forward=e9m9", "U402", "forward is 'e9m9'"),
    ("fp8,scaling=dynamic", "U402", "scaling is 'dynamic'"),
    ("fp8,loss_scale=1024", "U402", "goes with scaling = 'plain'"),
    ("fp16-loss-scaled,loss_scale=1000", "U402", "not a power of two"),
    ("fp8-amax,headroom=predicted", "U402", "go with scaling = 'unit'"),
    ("fp8,multiple=0", "U402", "multiple is 0"),
    ({"include": [3]}, "U402", "include is (3,)"),
    ("no/such/file.toml", "U402", "it cannot be read"),
]


@pytest.mark.parametrize(("given", "code", "text"), BAD, ids=[str(b[0]) for b in BAD])
def test_what_is_no_recipe_says_why(given: Any, code: str, text: str) -> None:
    with pytest.raises(UnitifyError) as caught:
        read_recipe(given)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(UnitifyError) as caught:
        read_recipe("fp8,exlude=a,atention=true")
    assert len(caught.value.diagnostics) == 2


def test_strange_keys_of_a_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.unitify]\nreciepe = "fp8"')
    with pytest.raises(UnitifyError, match="reciepe"):
        configured_recipe(tmp_path)


def test_a_recipe_made_in_python_is_checked_too() -> None:
    with pytest.raises(UnitifyError, match="U402"):
        Recipe("mine", E4M3, E5M2, values="everything")


# -- from the command line ------------------------------------------------------------------


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    save_file(factories.mlp().state_dict(), tmp_path / "mlp.safetensors")
    start = ["convert", "mlp.safetensors", "--model", "factories:mlp", "-o", "out"]
    return lambda *arguments: CliRunner().invoke(app, [*start, *arguments])


def test_convert_tells_what_was_cast(converted: Callable[..., Result]) -> None:
    result = converted("--recipe", "fp8,multiple=1,exclude=2")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.replace("│", " ").split())
    assert "cast to e4m3/e5m2 (a contraction): linear" in shown
    assert "kept (excluded by '2'): linear_1" in shown
    assert "66.7 % of linear FLOPs on eight bits" in shown
    report = json.loads(Path("out/report.json").read_text())
    assert [c["value"] for c in report["casts"]] == ["linear"]
    assert [c["value"] for c in report["kept_contractions"]] == ["linear_1"]
    module = unitify.load("out", factories.mlp())
    assert module.recipe == read_recipe("fp8,multiple=1,exclude=2")


def test_the_project_names_the_recipe(converted: Callable[..., Result]) -> None:
    Path("pyproject.toml").write_text('[tool.unitify]\nrecipe = "fp8,multiple=1"')
    assert converted().exit_code == 0
    assert json.loads(Path("out/report.json").read_text())["recipe"] == "fp8,multiple=1"


@pytest.mark.parametrize("recipe", ["fp8,exlude=a", "none.toml", "fp9"])
def test_a_wrong_recipe_is_one_line(converted: Callable[..., Result], recipe: str) -> None:
    result = converted("--recipe", recipe)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert not Path("out").exists()


# -- in the documentation -----------------------------------------------------------------------


def test_the_page_names_every_recipe_and_key() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text("utf-8")
    for name in (*RECIPES, *(field.name for field in dataclasses.fields(Recipe))):
        assert f"`{name}`" in page, name
    for text in re.findall(r'recipe="([^"]+)"|--recipe (\S+)', page):
        assert read_recipe(text[0] or text[1]) is not None
    for block in re.findall(r"```toml\n(.+?)```", page, re.DOTALL):
        assert read_recipe(tomllib.loads(block)["tool"]["unitify"]["recipe"]) is not None
