"""The command ``unitify check``: exit statuses, options, settings, baselines, folders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import factories
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from unitify.capture.source import Frame
from unitify.check.baseline import against, read_baseline, write_baseline
from unitify.check.finding import Finding
from unitify.check.outcome import Outcome
from unitify.check.settings import read_settings, settings_from
from unitify.cli import app, options
from unitify.diagnostics import PrecisionLost, UnitifyError
from unitify.recipe.recipe import RECIPES

Run = Callable[..., Result]

MODEL = """
from torch import nn
import torch

def sound():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))

def faulty():
    model = sound()
    nn.init.normal_(model[2].weight, std=1e-5)
    return model

def inputs():
    return (torch.randn(4, 16, generator=torch.Generator().manual_seed(0)),)

def identity():
    return nn.Identity()

def integers():
    class Model(nn.Embedding):
        def forward(self, x):
            return x.long() + 1
    return Model(4, 4)

def tokens():
    return torch.arange(4)

def half():
    return sound().half()

def breaks():
    class Model(nn.Linear):
        def named_modules(self, *arguments, **options):
            raise ZeroDivisionError
    return Model(16, 16)
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    # A module of the same name in another folder must not be the one imported before.
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)

    def invoke(factory: str, *options: str | Path) -> Result:
        target = factory if "/" in factory else f"{name}:{factory}"
        return CliRunner().invoke(app, ["check", target, *map(str, options)])

    return invoke


# -- exit statuses and selection ----------------------------------------------------------


def test_clean_is_zero_and_found_is_one(run: Run) -> None:
    assert run("sound").exit_code == 0
    result = run("faulty")
    assert result.exit_code == 1
    assert "2.weight" in result.stdout
    assert run("faulty", "--exit-zero").exit_code == 0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--select", "U803"], 1),
        (["--select", "U1"], 0),
        (["--ignore", "U8"], 0),
        (["--ignore", "2.weight"], 1),  # its followers are there
        (["--ignore", "*"], 0),
        (["--select", "2.w*", "--select", "U8"], 1),
        (["--select", "nothing*"], 2),
        (["--values", "cast", "--recipe", "fp8,exclude=*"], 2),
        (["--format", "bf16"], 0),
        (["--format", "unit"], 1),
    ],
)
def test_selection(run: Run, options: list[str], code: int) -> None:
    result = run("faulty", *options)
    assert result.exit_code == code, result.output


@pytest.mark.parametrize(
    ("factory", "options", "code"),
    [
        ("nothing", [], "U604"),
        ("./nowhere", [], "U601"),
        ("sound", ["--select", "U999"], "U006"),
        ("sound", ["--select", "U8O2"], "U006"),
        ("sound", ["--select", "nowhere*"], "U809"),
        ("sound", ["--format", "e5m3"], "U011"),
        ("sound", ["--values", "some"], "U011"),
        ("sound", ["--output-format", "xml"], "U001"),
        ("sound", ["--recipe", "fp9"], "U401"),
        ("sound", ["--plan", "nowhere.json"], "U301"),
        ("sound", ["--transformed", "--scales", "x"], "U001"),
    ],
)
def test_wrong_usage_is_two(run: Run, factory: str, options: list[str], code: str) -> None:
    result = run(factory, *options)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {code}")


def test_a_bug_is_two_as_well(run: Run) -> None:
    result = run("breaks")
    assert result.exit_code == 2
    assert "ZeroDivisionError" in result.stderr
    assert "please report it" in result.stderr


def test_several_formats_at_once(run: Run, tmp_path: Path) -> None:
    outputs = ["--output-format", "json", "--output-format", "sarif=out/check.sarif"]
    result = run("faulty", *outputs)
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    held = json.loads((tmp_path / "out" / "check.sarif").read_text())["runs"][0]["results"]
    assert len(found) == len(held) > 0
    file = found[0]["file"]
    assert re.fullmatch(r"mine_\d+\.py", file)  # relative, at the factory: no line made the weight
    run("faulty", "--output-format", "markdown", "--output-file", "x.md")
    assert "| U8" in (tmp_path / "x.md").read_text()


# -- settings -----------------------------------------------------------------------------


def test_settings_of_a_project(run: Run, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[tool.unitify.check]\nignore = ["U8"]\n')
    assert run("faulty").exit_code == 0
    project.write_text('[tool.unitify.check.per_name]\n"*" = { ignore = ["U80"] }\n')
    assert run("faulty").exit_code == 0
    project.write_text('[tool.unitify.check.per_name]\n"2*" = { noise = 99, flushed = 1.0 }\n')
    result = run("faulty", "--output-format", "json")
    names = {f["name"] for f in json.loads(result.stdout)["findings"]}
    assert "2.weight" not in names
    project.write_text('[tool.unitify]\nrecipe = "fp8"\n[tool.unitify.check]\nformat = "bf16"\n')
    assert run("faulty").exit_code == 0
    assert run("faulty", "--format", "e4m3").exit_code == 1


@pytest.mark.parametrize(
    "text",
    [
        "[tool.unitify.check]\nflush = 0.1",
        "[tool.unitify.check]\nflushed = -1",
        "[tool.unitify.check]\nflushed = true",
        '[tool.unitify.check]\nselect = "U8"',
        "[tool.unitify.check]\nband = [2.0, 0.5]",
        '[tool.unitify.check.per_name]\n"x" = { flush = 0.1 }',
        '[tool.unitify.check.per_name]\n"x" = 3',
    ],
)
def test_wrong_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UnitifyError) as caught:
        read_settings(tmp_path)
    assert caught.value.code == "U011"


def test_a_pattern_that_matches_nothing_is_noted(run: Run) -> None:
    result = run("sound", "--ignore", "typo.*")
    assert "the pattern 'typo.*' matches nothing" in result.stdout


def test_limits_by_name() -> None:
    settings = settings_from(
        {"noise": 6.0, "per_name": {"a.*": {"noise": 1.0}, "a.b": {"flushed": 0.2}}}
    )
    assert settings.limits_for(["c"]).noise == 6.0
    assert settings.limits_for(["a.b"]).noise == 1.0
    assert settings.limits_for(["a.b"]).flushed == 0.2
    assert settings.limits_for(["a.c"]).flushed == 0.5


# -- baseline -----------------------------------------------------------------------------


def test_a_baseline_hides_what_is_known(run: Run, tmp_path: Path) -> None:
    result = run("faulty", "--update-baseline")
    assert result.exit_code == 0
    path = tmp_path / "unitify-baseline.json"
    text = path.read_text()
    assert run("faulty").exit_code == 0
    assert "known" in run("faulty").stdout
    run("faulty", "--update-baseline")
    assert path.read_text() == text  # no times, no order of its own
    rows = json.loads(text)["findings"]
    assert rows == sorted(rows)
    assert ["U803", "2.weight", "forward"] in [row[:3] for row in rows]
    # What was mended is stale, and no failure.
    result = run("sound")
    assert result.exit_code == 0
    assert "stale in the baseline: U803 2.weight (forward)" in result.stdout
    path.write_text('{"version": 1, "findings": []}')
    assert run("faulty").exit_code == 1
    path.write_text("{")
    assert run("faulty").exit_code == 2


def finding(level: float | None, name: str = "x") -> Finding:
    lost = PrecisionLost(tensor="value", rms=1.0, format="e4m3", kept=1.0, best=2.0, advice="")
    return Finding(lost, name, "", Frame("a.py", 1), "forward", level=level)


def outcome(*findings: Finding) -> Outcome:
    return Outcome("t", findings, (), "", "")


@pytest.mark.parametrize(
    ("before", "now", "is_known"),
    [
        (3.2, 3.9, True),
        (3.2, 4.1, False),
        (3.0, 1.0, True),
        (None, None, True),
        (-4.0, -2.5, False),
    ],
)
def test_worse_is_not_known(
    tmp_path: Path, before: float | None, now: float | None, is_known: bool
) -> None:
    path = tmp_path / "b.json"
    write_baseline(path, outcome(finding(before)))
    compared = against(outcome(finding(now)), read_baseline(path))
    assert compared.is_clean is is_known
    assert compared.stale == ()


def test_no_file_is_an_empty_baseline(tmp_path: Path) -> None:
    assert read_baseline(tmp_path / "none.json") == {}
    assert write_baseline(tmp_path / "b.json", outcome()) == 0
    assert read_baseline(tmp_path / "b.json") == {}


@pytest.mark.parametrize(
    "text", ["[]", '{"version": 2, "findings": []}', '{"version": 1, "findings": [[1, 2]]}',
             '{"version": 1, "findings": [["U802", "x", "forward", "3"]]}'],
)  # fmt: skip
def test_what_is_no_baseline(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(UnitifyError) as caught:
        read_baseline(tmp_path / "b.json")
    assert caught.value.code == "U608"


# -- folders and plans --------------------------------------------------------------------


def test_a_converted_folder(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(factories.mlp().state_dict(), tmp_path / "mlp.safetensors")
    arguments = ["convert", "mlp.safetensors", "--model", "factories:mlp", "-o", "out"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    result = run("./out", "--model", "factories:mlp", "--recipe", "fp8,multiple=1")
    assert result.exit_code == 0, result.output
    assert "drift is not judged" not in result.stdout
    result = run("./out", "--model", "factories:mlp", "--scales", "analysis")
    assert "drift is not judged: the plan has other scales" in result.stdout
    # The plan that was written is the one of now.
    plan = tmp_path / "out" / "plan.json"
    same = CliRunner().invoke(app, ["check", "factories:mlp", "--plan", str(plan), "--exit-zero"])
    assert same.exit_code == 0, same.output


def test_a_committed_plan(run: Run, tmp_path: Path) -> None:
    import unitify

    model = torch.nn.Sequential(
        torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 16)
    )  # not the seed of the factory: other weights, and for some another scale
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 8.0)
    (tmp_path / "plan.json").write_text(unitify.transform(model, torch.randn(4, 16)).plan.dumps())
    result = run("sound", "--plan", "plan.json", "--output-format", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    assert "U808" in {f["code"] for f in found}
    assert "plan.json has 2^3" in " ".join(f["why"] for f in found)


@pytest.mark.slow
def test_a_hugging_face_folder(run: Run, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    result = run("./gpt2", "--output-format", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    # Nothing of it is written in this project: the config stands for it.
    assert {(f["file"], f["line"]) for f in found} == {("gpt2/config.json", 1)}
    assert any(f["module"].startswith("transformer.h.0") for f in found)
    assert run("./gpt2", "--transformed").exit_code == 0


def test_names_of_findings_are_explained(run: Run, tmp_path: Path) -> None:
    found = json.loads(run("faulty", "--output-format", "json").stdout)["findings"]
    assert found
    target = next(tmp_path.glob("mine_*.py")).stem
    for finding in found:
        arguments = ["explain", finding["name"], "--model", f"{target}:faulty"]
        arguments += ["--inputs", f"{target}:inputs"]
        assert CliRunner().invoke(app, arguments).exit_code == 0, arguments


def test_all_lists_what_follows(run: Run) -> None:
    few, every = run("faulty").stdout, run("faulty", "--all").stdout
    found = json.loads(run("faulty", "--output-format", "json").stdout)["findings"]
    assert "follow" in few
    assert every.count("fix: ") == len(found) > few.count("fix: ")


@pytest.mark.parametrize("factory", ["identity", "integers"])
def test_a_model_of_which_nothing_is_judged_is_not_clean(
    run: Run, factory: str, tmp_path: Path
) -> None:
    module = next(tmp_path.glob("mine_*.py")).stem
    given = "tokens" if factory == "integers" else "inputs"
    result = run(factory, "--inputs", f"{module}:{given}")
    assert result.exit_code == 2
    assert "U809" in result.stderr


def test_a_model_that_does_not_run_has_a_code(run: Run, tmp_path: Path) -> None:
    module = next(tmp_path.glob("mine_*.py")).stem
    result = run("half", "--inputs", f"{module}:inputs")
    assert result.exit_code == 2
    assert "U102" in result.stderr


def test_help_names_every_recipe(run: Run) -> None:
    assert set(options.RECIPES) == set(RECIPES)
    wide = {"COLUMNS": "400"}
    for command in ("check", "convert", "report"):
        shown = CliRunner().invoke(app, [command, "--help"], env=wide).stdout
        assert ", ".join(options.RECIPES) in shown
