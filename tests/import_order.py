"""The order of the package, as its imports give it: modules, packages, and the figure of them.

    python tests/import_order.py

writes the figure into ``docs/design.md``. An import that closes a cycle is an error.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unitify"
DESIGN = ROOT / "docs" / "design.md"
#: The figure in the page, between its comment and the next blank line.
FIGURE = re.compile(r"(?<=<!-- import order -->\n\n)(?: {4}.*\n)+")
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


def layers() -> list[list[str]]:
    """Packages by how many stand below each: a layer imports from earlier layers alone."""
    sorter = graphlib.TopologicalSorter(package_imports())
    sorter.prepare()
    found = []
    while sorter.is_active():
        ready = sorter.get_ready()
        found.append(sorted(ready))
        sorter.done(*ready)
    return found


def figure() -> str:
    """The layers as an indented block of Markdown, the first at the top."""
    return "".join(f"    {'  '.join(layer)}\n" for layer in layers())


if __name__ == "__main__":
    DESIGN.write_text(FIGURE.sub(figure(), DESIGN.read_text("utf-8")), "utf-8")
