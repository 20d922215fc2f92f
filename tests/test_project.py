"""What holds the project together: import order, file sizes, versions, commands."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import unitify
from unitify.cli import app

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unitify"
LONGEST = 400

#: The pipeline, in order: a module imports only what stands before it.
ORDER = """
    version diagnostics estimates verification rounding formats snr layout ops
    cast_operator scaled_mm fp8_linear recipe recipe_reader
    expressions schema rule_table samples
    signature functional inline modes autograd_functions composite recurrent exporting
    capture inputs
    dimensions laws extremes execution islands
    operation flops residual choices
    moments counts formula_moments linear_moments sampled_moments
    forward_moments backward_moments analysis measure
    cast_error passage noise_moments noise measured_moments measured_noise budget
    plan operand_casts uniform scale_classes rewrite
    cast lowering folding headroom noise_bound module assembly casting optimizers optim
    equation validation verify transform
    optimizer_state rebase readings monitor
    state_dict rebuild explain checkpoint pretrained folder report targets convert table cli
""".split()  # noqa: SIM905


def files_by_module() -> dict[str, list[Path]]:
    """Module of the pipeline → its files; a package has several."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if first not in ("rules", "__init__", "__main__"):
            found.setdefault(first, []).append(path)
    return found


def imported(path: Path) -> Iterator[str]:
    """Names of the modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            parts = (node.module or "").split(".")
            if parts[0] == "unitify":
                yield from parts[1:2] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "unitify":
                    yield parts[1] if len(parts) > 1 else "__init__"


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(files_by_module())


@pytest.mark.parametrize("module", files_by_module())
def test_a_module_imports_what_stands_before_it(module: str) -> None:
    before = ORDER[: ORDER.index(module) + 1]
    for path in files_by_module()[module]:
        late = set(imported(path)) - set(before)
        assert not late, f"{path.name} imports {sorted(late)}, which stands after it"


def test_no_file_is_long() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert len(paths) > len(ORDER)
    long = {p.name: n for p in paths if (n := len(p.read_text("utf-8").splitlines())) > LONGEST}
    assert not long


def test_every_module_says_what_it_is() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
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
    assert set(re.findall(r"unitify ([a-z]+) ", readme)) <= commands | {"is", "and"}


def test_pythons_of_the_readme_run(tmp_path: Path) -> None:
    """Every block of Python in the README runs, one after the other."""
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.+?)```", readme, re.DOTALL)
    assert blocks
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)


def test_dependencies_are_pinned_for_tests() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    extras = [line for group in setup["options.extras_require"].values() for line in [group]]
    listed = "\n".join([setup["options"]["install_requires"], *extras]).split()
    names = {re.split(r"[<>=]", line)[0].lower().replace("_", "-") for line in listed}
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    pinned = re.findall(r"^([\w-]+)==", constraints, re.MULTILINE)
    assert names <= {name.lower().replace("_", "-") for name in pinned}


def test_dependencies_have_a_reason() -> None:
    design = ROOT / "docs" / "design.md"
    if not design.exists():
        pytest.skip("docs/design.md")
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    text = design.read_text("utf-8")
    for line in setup["options"]["install_requires"].split():
        assert re.split(r"[<>=]", line)[0] in text


def test_ci_runs_what_a_developer_runs() -> None:
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == "exec make test"
