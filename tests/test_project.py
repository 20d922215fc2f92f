"""What holds the project together: import order, file sizes, versions, commands."""

from __future__ import annotations

import ast
import graphlib
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import unitify
from unitify.cli import app

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unitify"
LONGEST = 400

#: The stages of the pipeline, and what stands behind it: none imports one that comes later.
STAGES = (
    "diagnostics", "formats", "rulebook", "capture", "recipe", "analysis", "scheme", "plan",
    "rewrite", "module", "cast", "verifying", "transforming", "drift", "check", "report", "cli",
)  # fmt: skip
#: Imports that run when somebody asks for what stands behind: importer and imported.
LAZY = {("module.unit_scaled", "report.of_module")}


def files_by_module() -> dict[str, Path]:
    """Module, by its path below the package → its file. Diagnostics, which all may import, are one.

    A package is a module of its own name beside its files.
    """
    found: dict[str, Path] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("rules", "__init__") or parts[-1] == "__main__":
            continue
        if parts[0] != "diagnostics" or parts[1] == "__init__":
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = files_by_module()


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            found = [f"{node.module}.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        for name in found:
            parts = name.split(".")
            if parts[0] == "unitify":
                yield _module(parts[1:])


def _module(parts: list[str]) -> str:
    """The longest start of a dotted name that is a module."""
    starts = (".".join(parts[:length]) for length in (2, 1))
    return next((start for start in starts if start in MODULES), "__init__")


def imports() -> dict[str, set[str]]:
    """Module → the modules that it imports."""
    return {
        module: {other for other in imported(path) if (module, other) not in LAZY} - {module}
        for module, path in MODULES.items()
    }


def package_imports() -> dict[str, set[str]]:
    """Package, or module outside of any → those that its files import."""
    found: dict[str, set[str]] = {}
    for module, others in imports().items():
        package = module.partition(".")[0]
        found.setdefault(package, set()).update(other.partition(".")[0] for other in others)
    return {package: others - {package} for package, others in found.items()}


@pytest.mark.parametrize("graph", [imports, package_imports])
def test_imports_have_an_order(graph: Callable[[], dict[str, set[str]]]) -> None:
    """Modules, and packages as wholes, can be read one after the other: no two need each other."""
    order = list(graphlib.TopologicalSorter(graph()).static_order())
    assert "__init__" not in order
    assert order.index("version") < order.index("cli")


def test_stages_stand_in_their_order() -> None:
    found = package_imports()
    for place, stage in enumerate(STAGES):
        reached, pending = set[str](), [stage]
        while pending:
            for other in found[pending.pop()] - reached:
                reached.add(other)
                pending.append(other)
        late = reached & set(STAGES[place:])
        assert not late, f"{stage} imports {sorted(late)}, which stands after it"


def own_files() -> list[Path]:
    return [
        path
        for top in (PACKAGE, ROOT / "examples", ROOT / "benchmarks")
        for path in top.rglob("*.py")
    ]


def test_no_file_is_long() -> None:
    paths = [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    assert len(paths) > len(MODULES)
    long = {p.name: n for p in paths if (n := len(p.read_text("utf-8").splitlines())) > LONGEST}
    assert not long


def test_every_module_says_what_it_is() -> None:
    for path in [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "examples").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]:
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_the_changelog_is_of_this_version() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert re.search(r"\d+\.\d+\.\d+", headings[0]).group() == unitify.__version__


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
