"""``unitify rules``: listed, verified on samples, extended, and the pages of the rule table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from unitify.cli import app
from unitify.rule_trials.listing import row, rule_texts
from unitify.rule_trials.page import LONGEST, pages
from unitify.rule_trials.skeleton import skeleton
from unitify.rule_trials.verify import verify, verify_row
from unitify.rulebook.rule_table import load_rules

ROOT = Path(__file__).resolve().parent.parent
RULES = load_rules()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["rules", *arguments], env={"COLUMNS": "200"})


def test_the_pages_are_current() -> None:
    files = (ROOT / "docs" / "rules").iterdir()
    assert {file.name: file.read_text("utf-8") for file in files} == pages(), "run `make docs`"


def test_every_row_is_on_a_page_and_no_cell_is_long() -> None:
    lines = [line for text in pages().values() for line in text.splitlines()]
    cells = [line.split(" | ") for line in lines if line.startswith("| `")]
    assert sorted(row[0].strip("| `") for row in cells) == sorted(RULES)
    assert max(len(cell) for row in cells for cell in row) <= LONGEST


@pytest.mark.parametrize(
    ("operation", "law", "forward"),
    [
        ("aten.linear.default", "out = input · weight, bias = bias / (input · weight)", "fan_in"),
        ("aten.gelu.default", "", "quadrature over self"),
        ("aten.sqrt.default", "out = self^1/2", ""),
        ("aten.add.Tensor", "out = out, self = self / out, other = other / out", "mean"),
        ("aten.sort.default", "out = self", "sampled"),
    ],
)
def test_a_row_in_words(operation: str, law: str, forward: str) -> None:
    found = row(RULES[operation])
    assert found.law.startswith(law)
    assert forward in " ".join(found.forward)
    first, *others = rule_texts(RULES[operation])
    assert first.startswith(f"rule {operation}, {found.kind}")
    assert found.law in first
    assert others == list(found.forward)


def test_the_list() -> None:
    result = run("--only", "aten.conv2d*")
    assert result.exit_code == 0
    assert "aten.conv2d.default" in result.stdout
    assert "aten.linear" not in result.stdout


@pytest.mark.parametrize("operation", ["aten.linear.default", "aten.relu.default", "aten.max.dim"])
def test_shipped_rows_hold(operation: str) -> None:
    (verdict,) = verify(RULES, [operation])
    assert verdict.holds, verdict.problems
    assert verdict.law > 4
    assert (verdict.moments > 1) == (operation != "aten.max.dim")


def test_a_row_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('["aten.sinh.default"]\nreplaces = true\nelementwise = "self"\n'
                    'sample = { self = "normal(96, 96, rms=0.5)" }\n')  # fmt: skip
    result = run("verify", str(path))
    assert result.exit_code == 0
    assert result.stdout.startswith("aten.sinh.default: holds (law ")
    assert result.stdout.endswith("1 of 1 rows hold\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        # A hyperbolic sine is not homogeneous, and its mean square is not that of its operand.
        ('["aten.sinh.default"]\nreplaces = true\nlaw = { out = "self" }\n'
         'sample = { self = "normal(9, 9)" }', "the law is not bitwise"),
        ('["aten.sinh.default"]\nreplaces = true\n'
         'forward = { mean = "0", square = "square(self)" }\n'
         'backward = { self = { mean = "mean(grad)", square = "square(grad)" } }\n'
         'sample = { self = "normal(96, 96)" }', "standard errors"),
        ('["aten.sinh.default"]\nreplaces = true\nover = [-3]\n'
         'forward = { square = "average(square(self))" }\n'
         'sample = { self = "normal(9, 9)" }', "not predicted: it has 2 dimensions"),
    ],
)  # fmt: skip
def test_a_wrong_row_does_not_hold(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    result = run("verify", str(path))
    assert result.exit_code == 1, result.output
    assert f"{path}:1: aten.sinh.default: does not hold" in result.stdout
    assert problem in result.stdout


def test_a_file_that_holds_no_rules(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("x = 1")
    result = run("verify", str(tmp_path / "mine.toml"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: U201")


@pytest.mark.parametrize(
    "operation",
    [
        "aten.cumsum.default",
        "aten.sinh.default",
        "aten.cat.default",
        "aten.masked_fill.Scalar",
        "aten.index_select.default",
    ],
)
def test_a_skeleton_verifies_as_it_is(tmp_path: Path, operation: str) -> None:
    path = tmp_path / "mine.toml"
    result = run("new", operation, "-o", str(path))
    assert result.exit_code == 0, result.output
    table = load_rules([path])
    verdict = verify_row(table[operation])
    assert verdict.holds, verdict.problems
    assert run("new", operation).stdout == path.read_text() == skeleton(operation)
    assert run("new", operation, "-o", str(path)).exit_code == 2


def test_a_skeleton_of_nothing() -> None:
    result = run("new", "aten.nothing.default")
    assert result.exit_code == 2
    assert "aten.cumsum.default" in result.stderr


SOFTCLIP = """
import torch

@torch.library.custom_op("unitify_clips::softclip", mutates_args=())
def softclip(value: torch.Tensor, bound: float = 1.0) -> torch.Tensor:
    return bound * torch.tanh(value / bound)

@softclip.register_fake
def _(value, bound=1.0):
    return torch.empty_like(value)

def setup(ctx, inputs, output):
    ctx.save_for_backward(output)
    ctx.bound = inputs[1]

def backward(ctx, gradient):
    (output,) = ctx.saved_tensors
    return gradient * (1 - (output / ctx.bound) ** 2), None

softclip.register_autograd(backward, setup_context=setup)
"""


def test_operations_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--import`` registers them: for a new row, to verify it, to list it."""
    (tmp_path / "unitify_clips.py").write_text(SOFTCLIP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name, path = "unitify_clips.softclip.default", tmp_path / "mine.toml"
    path.write_text(f'["{name}"]\nlaw = {{ out = "value", bound = "bound / value" }}\n'
                    'elementwise = "value"\nsample = { value = "normal(48, 48)" }\n')  # fmt: skip
    before = run("verify", str(path))
    assert before.exit_code == 2
    assert f"U205 [{path}:1] torch has no operation {name}" in before.stderr
    assert run("new", name).exit_code == 2

    imported = ("--import", "unitify_clips")
    made = run("new", name, "-o", str(tmp_path / "new.toml"), *imported)
    assert made.exit_code == 0, made.output
    for file in ("mine.toml", "new.toml"):
        verified = run("verify", file, *imported)
        assert verified.exit_code == 0, verified.output
        assert verified.stdout.startswith(f"{name}: holds (law ")
    listed = run("--rules", str(path), "--only", "unitify_clips.*", *imported)
    assert listed.exit_code == 0
    assert "softclip" in listed.stdout

    path.write_text(f'["{name}"]\n# No function of the kind.\nlaw = {{ out = "value ** 2" }}\n'
                    'sample = { value = "normal(48, 48)" }\n')  # fmt: skip
    wrong = run("verify", "mine.toml", *imported)
    assert wrong.exit_code == 1
    assert wrong.stdout.startswith(f"mine.toml:1: {name}: does not hold: the law is not bitwise")


def test_a_library_that_cannot_be_imported() -> None:
    result = run("verify", "--import", "unitify_nowhere")
    assert result.exit_code == 2
    assert "U207" in result.stderr
    assert "unitify_nowhere" in result.stderr
