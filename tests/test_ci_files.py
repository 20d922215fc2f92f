"""Hooks, action and example workflow: valid, and of commands and options that exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from checking import plant
from referencing import Registry
from referencing.jsonschema import DRAFT7
from test_check_outputs import schema

from unitify.cli import app

ROOT = Path(__file__).resolve().parent.parent
HOOKS = ROOT / ".pre-commit-hooks.yaml"
ACTION = ROOT / "action.yml"
GITHUB = ROOT / ".github"
WORKFLOW = ROOT / "examples" / "ci" / "check.yml"


def read(path: Path) -> Any:
    document = yaml.safe_load(path.read_text("utf-8"))
    if isinstance(document, dict) and True in document:
        document["on"] = document.pop(True)  # YAML 1.1 takes the key for a truth value
    return document


#: Files by the schema that they follow.
VALID = {
    "pre-commit-hooks": [HOOKS],
    "pre-commit-config": [ROOT / ".pre-commit-config.yaml"],
    "github-action": [ACTION],
    "github-workflow": [WORKFLOW, *sorted((GITHUB / "workflows").glob("*.yml"))],
    "github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / f"{n}.yml" for n in ("wrong", "wish")],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "dependabot-2.0": [GITHUB / "dependabot.yml"],
    "https://citation-file-format.github.io/1.2.0/schema.json": [ROOT / "CITATION.cff"],
}


@pytest.mark.parametrize(
    ("path", "name"),
    [(path, name) for name, paths in VALID.items() for path in paths],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_it_is_valid(path: Path, name: str) -> None:
    registry = Registry(retrieve=lambda url: DRAFT7.create_resource(schema(url)))
    jsonschema.validate(read(path), schema(name), registry=registry)


def options(command: str) -> set[str]:
    """Every option of a command of ours."""
    group = typer.main.get_command(app)
    parameters = group.commands[command].params
    return {name for parameter in parameters for name in parameter.opts}


def commands_in(text: str) -> list[tuple[str, set[str]]]:
    """Each ``unitify COMMAND`` with the options that follow it, up to the end of the call."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^\s*(?:run: |entry: )?unitify (\w+)(.*)$", joined, re.MULTILINE)
    return [(name, set(re.findall(r"(?<!\S)--[a-z-]+", rest))) for name, rest in found]


@pytest.mark.parametrize("path", [HOOKS, ACTION, WORKFLOW], ids=lambda p: p.name)
def test_commands_and_options_exist(path: Path) -> None:
    found = commands_in(path.read_text("utf-8"))
    assert found
    for command, given in found:
        assert command == "check"
        assert given <= options(command)


def test_the_workflow_gives_the_action_what_it_takes() -> None:
    steps = read(WORKFLOW)["jobs"]["check"]["steps"]
    (step,) = [s for s in steps if "unitify" in s.get("uses", "")]
    inputs = read(ACTION)["inputs"]
    assert step["with"].keys() <= inputs.keys()
    assert {name for name, given in inputs.items() if given.get("required")} <= step["with"].keys()
    assert set(re.findall(r"--[a-z-]+", step["with"]["args"])) <= options("check")


def test_the_script_of_the_action_runs(tmp_path: Path) -> None:
    root = plant(tmp_path)
    steps = read(ACTION)["runs"]["steps"]
    (check,) = [s for s in steps if s["name"] == "Check"]
    assert "${{" not in check["run"]  # nothing of an input becomes part of the script
    summary = root / "summary.md"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(summary),
        "UNITIFY_TARGET": "planted.models:detached",
        "UNITIFY_ARGS": "--inputs planted.models:tokens --select U8",
        "UNITIFY_SARIF": "out.sarif",
        "UNITIFY_JUNIT": "out.xml",
    }
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", check["run"]],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "::error title=unitify (U806),file=planted/layers.py,line=" in done.stderr
    assert "U806" in done.stdout
    assert "| U806 |" in summary.read_text()
    assert json.loads((root / "out.sarif").read_text())["version"] == "2.1.0"
    assert (root / "out.xml").exists()
