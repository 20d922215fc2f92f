"""The wheel: built from the tree, installed into an empty folder, used outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    held = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd, env=held | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the build leaves files beside the sources."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("unitify", "rules"):
        ignored = shutil.ignore_patterns("__pycache__", "rules")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    modules = ("pytest_unitify.py", "unitify_command.py")
    for name in ("setup.cfg", "pyproject.toml", *modules, "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", "dist", cwd=tree)
    (built,) = (tree / "dist").glob("unitify-*.whl")
    return built


def test_rules_templates_and_every_module_are_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "unitify").rglob("*.py"):
        if (ROOT / "unitify" / "rules") not in path.parents:
            assert f"unitify/{path.relative_to(ROOT / 'unitify').as_posix()}" in names
    rules = {f"unitify/rules/{path.name}" for path in (ROOT / "rules").glob("*.toml")}
    assert rules
    assert rules <= names
    assert {"unitify/py.typed", "pytest_unitify.py", "unitify_command.py"} <= names
    templates = (ROOT / "unitify" / "report" / "templates").iterdir()
    assert {f"unitify/report/templates/{path.name}" for path in templates} <= names


def test_it_works_in_a_checkout(wheel: Path) -> None:
    """There Python imports the sources, whatever is installed."""
    code = "import unitify.rulebook.rule_table as r; print(r.__file__, len(r.load_rules()))"
    libraries = str(Path(torch.__file__).parents[1])
    tree = wheel.parent.parent
    file, count = run(sys.executable, "-S", "-c", code, cwd=tree, PYTHONPATH=libraries).split()
    assert Path(file).is_relative_to(tree)
    assert int(count) > 100


@pytest.mark.slow
def test_it_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed, work = tmp_path / "installed", tmp_path / "work"
    work.mkdir()
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target")
    run(sys.executable, *pip, installed, wheel, cwd=work)
    (work / "mine.py").write_text(FACTORY)
    here = {"PYTHONPATH": str(installed)}
    save = "import mine, torch; torch.save(mine.build().state_dict(), 'mine.pt')"
    run(sys.executable, "-c", save, cwd=work, **here)

    version = run(sys.executable, "-m", "unitify", "--version", cwd=work, **here)
    assert version.startswith("unitify ")
    where = "import unitify, unitify.rules; print(unitify.__file__); print(unitify.rules.__file__)"
    for line in run(sys.executable, "-c", where, cwd=work, **here).splitlines():
        assert line.startswith(str(installed))
    command = ("convert", "mine.pt", "--model", "mine:build", "-o", "out")
    table = run(sys.executable, "-m", "unitify", *command, cwd=work, **here)
    assert "yes: " in table
    assert sorted(p.name for p in (work / "out").iterdir()) == [
        "model.safetensors", "plan.json", "report.json",
    ]  # fmt: skip
    assert (installed / "bin" / "unitify").exists()
    command = ("report", "mine:build", "-o", "report.html")
    run(sys.executable, "-m", "unitify", *command, cwd=work, **here)
    assert b"</html>" in (work / "report.html").read_bytes()
