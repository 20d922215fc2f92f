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

#: The pipeline, in order: a file imports only what stands before it. A package and its files, or a
#: module alone.
ORDER = {
    "version": "",
    "diagnostics": "",
    "estimates": "",
    "verification": "",
    "reparametrisation": "",
    "formats": "powers narrow rounding table signal_to_noise band",
    "ops": "layout registered rescale onnx cast centring scaled_mm fp8_linear arrive written",
    "operations": """expressions formula_names schema samples rule row_lines row_forms row_reader
        row_names row_use rule_table refusal dimensions laws extremes operation flops products
        centring residual""",
    "capture": """equality places state effects tree source decisions computed guards signature
        sizes aliases views counterparts uninitialised kept refusals functional inline modes
        autograd_functions recurrent composite eager_flags identity watching exporting example
        recorded_graph whole inputs execution observing small calls islands""",
    "recipe": "recipe reader choices",
    "analysis": """moments quadrature softmax counts formulas linear ranges sampled balanced stated
        forward backward analyse""",
    "measure": "tally captured recorded",
    "scheme": "options meetings structure roles stacks sweep multipliers reparametrise rates",
    "plan": "fixed scale_plan uniform scale_classes",
    "rewrite": "",
    "arrival": "",
    "noise": """cast_error passage moments predict measured budget drawn_inputs drawn
        probed operand_casts""",
    "module": "tied fingerprint interpreted knobs own_code folding unit_scaled adopted assembly",
    "cast": "centring insert lowering distributions headroom trials means noise_bound casting",
    "optim": "optimizers groups state",
    "verify": "comparison calls results yardstick underflow equation validation running",
    "transform": "",
    "drift": "measuring rebase readings monitor",
    "checkpoint": "state_dict rebuild files pretrained folder targets",
    "rulebook": "calls laws moments verify listing skeleton page",
    "report": """report table magnitudes losses shares drawn_moments unit_graph constraints schemes
        measured_schemes origins numerics sqnr values class_graph drift_file gathering document
        scheme_summary summary sections page figure notebook model_report of_module""",
    "explain": "",
    "convert": "",
    "check": """subject judged settings figures scale_faults causes lost_gradients naming
        places finding plan_faults left_out outcome piece_findings checking targets baseline text
        markdown sarif github junit outputs asserting""",
    "cli": "terminal application options convert explain check rules report",
}
#: Every module by its path below the package, in that order; a package stands behind its files.
MODULES = [
    module
    for name, files in ORDER.items()
    for module in (*(f"{name}.{file}" for file in files.split()), name)
]


def files_by_module() -> dict[str, Path]:
    """Module, as ``MODULES`` names it → its file. Diagnostics, which all may import, are one."""
    found: dict[str, Path] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("rules", "__init__") or parts[-1] == "__main__":
            continue
        if parts[0] != "diagnostics" or parts[1] == "__init__":
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


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


def test_every_module_has_its_place() -> None:
    assert sorted(MODULES) == sorted(files_by_module())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_stands_before_it(module: str) -> None:
    late = set(imported(files_by_module()[module])) - set(MODULES[: MODULES.index(module) + 1])
    assert not late, f"{module} imports {sorted(late)}, which stands after it"


def test_no_file_is_long() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert len(paths) > len(MODULES)
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
    commands |= {group.name for group in app.registered_groups}
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
