"""Blocks of YAML and TOML in the pages: each parses, and asks for what exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import Any

import jsonschema
import pytest
import yaml
from links import external
from referencing import Registry
from referencing.jsonschema import DRAFT7
from test_check_outputs import schema
from test_ci_files import HOOKS, WORKFLOW, options, read
from test_documents import PAGES, ROOT

import unitify
from unitify.check.settings import settings_from
from unitify.recipe.reader import read_recipe
from unitify.rulebook.row_reader import read_row

#: Those of rules/ are excerpts of rule files, which other tests read.
BLOCKS = [
    pytest.param(kind, title, text, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page, blocks in PAGES.items()
    if page.parent.name != "rules"
    for number, (kind, title, text) in enumerate(blocks)
    if kind in ("yaml", "toml")
]


def valid(document: Any, name: str) -> None:
    registry = Registry(retrieve=lambda url: DRAFT7.create_resource(schema(url)))
    jsonschema.validate(document, schema(name), registry=registry)


def checks(words: list[str]) -> None:
    """``unitify check`` names its inputs, and takes every option."""
    given = {word for word in words if word.startswith("--")}
    assert "--inputs" in given
    assert given <= options("check")


def hooks(document: Any) -> None:
    """A config of pre-commit: our hooks exist, and are of this version."""
    valid(document, "pre-commit-config")
    offered = {hook["id"] for hook in read(HOOKS)}
    for repository in document["repos"]:
        assert repository["rev"] == f"v{unitify.__version__}"
        for hook in repository["hooks"]:
            assert hook["id"] in offered
            checks(hook["args"])


def steps(found: list[dict[str, Any]]) -> None:
    """Steps of a job of GitHub: each that checks names its inputs."""
    job = {"runs-on": "ubuntu-latest", "steps": found}
    valid({"on": "push", "jobs": {"job": job}}, "github-workflow")
    commands = [step.get("run", "") for step in found]
    commands += [
        f"unitify check {s['with']['args']}" for s in found if "unitify/" in s.get("uses", "")
    ]
    checking = [words for c in commands if (words := shlex.split(c))[:2] == ["unitify", "check"]]
    assert checking
    for words in checking:
        checks(words)


def test_steps_of_the_workflow_name_their_inputs() -> None:
    workflow = read(WORKFLOW)
    steps(workflow["jobs"]["check"]["steps"])
    used = [
        s["uses"] for s in workflow["jobs"]["check"]["steps"] if "unitify/" in s.get("uses", "")
    ]
    assert used == [f"unitify/unitify@v{unitify.__version__}"]


@pytest.mark.parametrize(("kind", "title", "text"), BLOCKS)
def test_a_block_is_valid(kind: str, title: str, text: str) -> None:
    if kind == "toml":
        document = tomllib.loads(text)
        tables = document.pop("tool", {}).get("unitify", {})
        if "recipe" in tables:
            assert read_recipe(tables["recipe"]) is not None
        if "check" in tables:
            settings_from(tables["check"])
        # Anything else is a row of a rule file.
        assert [
            problem for name, row in document.items() for problem in read_row(name, row)[1]
        ] == []
    elif title == ".pre-commit-config.yaml":
        hooks(yaml.safe_load(text))
    else:
        steps(yaml.safe_load(text))


def test_every_kind_of_block_is_there() -> None:
    assert {block.values[0] for block in BLOCKS} == {"yaml", "toml"}
    assert re.search(r"\.pre-commit-config\.yaml", str([block.values[1] for block in BLOCKS]))


def test_links_are_found() -> None:
    text = "[a](https://a.org/b#c) [d](e.md) <https://f.org> [g](https://g.org)"
    assert external(text) == ["https://a.org/b", "https://g.org"]
