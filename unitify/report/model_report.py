"""``ModelReport``: the numerics of a model, in several forms.

print(report)              a summary
report                     the summary and the main figure, in a notebook
report.save("report.html") everything; also .json, .txt, .svg and .png
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from unitify.diagnostics import (
    NotWritten,
    OutputExists,
    UnitifyError,
    UnknownOption,
    check_package,
)
from unitify.report.document import KIND, document, dumps
from unitify.report.figure import writer
from unitify.report.notebook import notebook_html
from unitify.report.numerics import Numerics
from unitify.report.page import page
from unitify.report.summary import summary

#: Columns of a summary as text.
WIDTH = 100


@dataclass(frozen=True)
class ModelReport:
    """The result of ``module.report()``."""

    numerics: Numerics

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, emoji=False)
        console.print(summary(self.numerics))
        written = console.file
        assert isinstance(written, io.StringIO)
        return written.getvalue()

    def _repr_html_(self) -> str:
        return notebook_html(self.numerics)

    def as_json(self) -> dict[str, Any]:
        """All data of the report as plain values (docs/report.md describes the layout)."""
        return document(self.numerics)

    def rendered(self, format: str) -> bytes:
        """The report in one of the formats of ``save``, with the same errors."""
        return WRITERS[format](self.numerics)

    def save(self, path: str | os.PathLike[str], format: str | None = None) -> tuple[Path, ...]:
        """Write the report to ``path``. Returns the files that were written.

        ``format``: html, json, text, svg or png; None takes it from the suffix. A page also gets a
        JSON file of the same name beside it. Existing files are replaced, except a JSON file beside
        the page that is not a report.

        Raises ``UnitifyError``: U001 for another format; U005 where a package for it is missing;
        U605 where the JSON file would replace another file; U606 where a file cannot be written.
        """
        target = Path(path)
        chosen = format_of(target, format)
        files = {target: self.rendered(chosen)}
        if chosen == "html":
            beside = target.with_suffix(".json")
            check_replaceable(beside)
            files[beside] = dumps(self.numerics).encode()
        for file, content in files.items():
            try:
                file.write_bytes(content)
            except OSError as error:
                problem = error.strerror or str(error)
                raise UnitifyError(NotWritten(path=str(file), problem=problem)) from None
        return tuple(files)


def _text(numerics: Numerics) -> bytes:
    return str(ModelReport(numerics)).encode()


#: Format → the function that makes the file.
WRITERS: Mapping[str, Callable[[Numerics], bytes]] = {
    "html": page,
    "json": lambda numerics: dumps(numerics).encode(),
    "text": _text,
    "svg": writer("svg"),
    "png": writer("png"),
}
#: Suffix of a file → its format.
SUFFIXES = {
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".txt": "text",
    ".svg": "svg",
    ".png": "png",
}


#: Format → the package that draws it.
PACKAGES = {"html": "plotly", "svg": "matplotlib", "png": "matplotlib"}


def format_of(path: Path | None, format: str | None = None) -> str:
    """``format``, else that of the suffix of ``path``; text without a path.

    Raises ``UnitifyError``: U001 for an unknown format, or a file without a known suffix; U005
    where the package that draws it is missing.
    """
    chosen = _named(path, format)
    if chosen in PACKAGES:
        check_package(PACKAGES[chosen], f"a report as {chosen}")
    return chosen


def _named(path: Path | None, format: str | None) -> str:
    if format is None and path is not None:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            choices = f"the names that end in {', '.join(SUFFIXES)}"
            raise UnitifyError(UnknownOption(option="output", value=str(path), choices=choices))
        return SUFFIXES[suffix]
    chosen = format or "text"
    if chosen not in WRITERS:
        choices = ", ".join(WRITERS)
        raise UnitifyError(UnknownOption(option="format", value=chosen, choices=choices))
    return chosen


def check_replaceable(beside: Path) -> None:
    """Raises ``UnitifyError`` (U605) where ``beside`` exists and is not the JSON of a report."""
    if not os.path.lexists(beside):
        return
    try:
        with beside.open(encoding="utf-8") as file:
            start = file.read(64)
    except (OSError, UnicodeDecodeError):
        start = ""
    if f'"kind":"{KIND}"' not in start:
        raise UnitifyError(OutputExists(path=str(beside)))
