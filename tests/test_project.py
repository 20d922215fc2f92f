"""What holds the project together: import order, file sizes, versions, commands."""

from __future__ import annotations

import ast
import graphlib
import itertools
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from import_order import DESIGN, FIGURE, MODULES, PACKAGE, ROOT, figure, imports, package_imports

import unitify
from unitify.cli import app

LONGEST = 400


@pytest.mark.parametrize("graph", [imports, package_imports])
def test_imports_have_an_order(graph: Callable[[], dict[str, set[str]]]) -> None:
    """Modules, and packages as wholes, can be read one after the other: no two need each other."""
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert "__init__" not in order
    assert order.index("version") < order.index("cli")


def test_the_design_shows_the_order() -> None:
    """A new import that moves a package shows in the page: `make docs` draws the figure."""
    assert FIGURE.findall(DESIGN.read_text("utf-8")) == [figure()]


def own_files() -> list[Path]:
    return [
        path
        for top in (PACKAGE, ROOT / "examples", ROOT / "benchmarks")
        for path in top.rglob("*.py")
    ]


def test_no_file_is_long() -> None:
    paths = own_files()
    assert len(paths) > len(MODULES)
    long = {p.name: n for p in paths if (n := len(p.read_text("utf-8").splitlines())) > LONGEST}
    assert not long


def test_every_module_says_what_it_is() -> None:
    for path in own_files():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_the_release_is_of_this_version() -> None:
    """The changelog's newest heading, its link, the citation and the tag that a release needs."""
    version = re.escape(unitify.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    heading, *_ = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    (date,) = re.findall(rf"^\[{version}\] - (\d{{4}}-\d\d-\d\d)$", heading)
    assert f"[{unitify.__version__}]: https://github.com/unitify/unitify/releases" in changelog
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f'version: {unitify.__version__}\ndate-released: "{date}"\n' in citation


def test_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^\s*make ([a-z]+)|`make ([a-z]+)`", readme, re.MULTILINE))
    named = {a or b for a, b in named}
    assert {"demo", "test"} <= named <= targets
    commands = {c.name or c.callback.__name__ for c in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"unitify ([a-z]+) ", readme)) <= commands | {"is", "and"}


def test_dependencies_are_pinned_for_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *itertools.chain(*extras)]
    names = {re.split(r"[<>=[]", line)[0].lower().replace("_", "-") for line in listed}
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = re.findall(r"^([\w-]+)==", constraints, re.MULTILINE)
    assert names <= {name.lower().replace("_", "-") for name in pinned}


def test_dependencies_have_a_reason() -> None:
    design = ROOT / "docs" / "design.md"
    if not design.exists():
        pytest.skip("docs/design.md")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = design.read_text("utf-8")
    for line in project["dependencies"]:
        assert re.split(r"[<>=]", line)[0] in text


@pytest.mark.parametrize(
    ("helper", "marker"), [("browser", "browser"), ("two_processes", "distributed")]
)
def test_what_needs_more_than_python_is_marked(helper: str, marker: str) -> None:
    texts = [path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    users = [text for text in texts if f"from {helper} import" in text]
    assert users
    assert all(re.search(rf"^pytestmark = .*\b{marker}\b", text, re.M) for text in users)


def test_ci_runs_what_a_developer_runs() -> None:
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == "exec make test"
