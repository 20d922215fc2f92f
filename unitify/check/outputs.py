"""The files that an outcome is written to, and their formats.

``--output-format FORMAT[=FILE]`` may be given several times. ``--output-file`` is the file of the
one format without a file of its own. A format without any file goes to stdout; annotations go to
stderr.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from unitify.check.github import as_github
from unitify.check.markdown import as_markdown
from unitify.check.outcome import Outcome
from unitify.check.sarif import as_sarif
from unitify.check.text import as_text
from unitify.diagnostics import NotWritten, UnitifyError, UnknownOption

FORMATS = ("text", "json", "sarif", "github", "junit", "markdown")


@dataclass(frozen=True)
class Output:
    """One format and its file; None is stdout, or stderr for annotations."""

    format: str
    path: Path | None = None


def read_outputs(given: Iterable[str], file: Path | None = None) -> tuple[Output, ...]:
    """The outputs of ``--output-format`` and ``--output-file``; text to stdout without either.

    Raises ``UnitifyError`` (U001) for an unknown format, and where two would share one file.
    """
    outputs = []
    for text in given or ("text",):
        name, equals, path = text.partition("=")
        if name not in FORMATS or (equals and not path):
            raise _unknown("--output-format", text, ", ".join(FORMATS))
        outputs.append(Output(name, Path(path) if path else None))
    open_ended = [o for o in outputs if o.path is None]
    if file is not None:
        if len(open_ended) != 1:
            choices = "one format without a file of its own (others as FORMAT=FILE)"
            raise _unknown("--output-file", str(file), choices)
        outputs = [Output(o.format, file) if o.path is None else o for o in outputs]
    targets = [o.path or ("stderr" if o.format == "github" else "stdout") for o in outputs]
    for target in targets:
        if targets.count(target) > 1:
            raise _unknown("--output-format", str(target), "a file for each: FORMAT=FILE")
    return tuple(outputs)


def write_outputs(
    outcome: Outcome, outputs: Iterable[Output], stdout: TextIO, is_whole: bool = False
) -> None:
    """Write ``outcome`` to every output. ``is_whole``: text on the terminal lists every finding.

    Raises ``UnitifyError`` (U606) for a file that cannot be written.
    """
    for output in outputs:
        if output.path is not None:
            _write(output.path, rendered(outcome, output.format))
        elif output.format == "text":
            console = Console(file=stdout, emoji=False)
            console.print(as_text(outcome, is_whole), highlight=False, soft_wrap=True)
        elif output.format == "github":
            sys.stderr.write(rendered(outcome, "github"))
        else:
            stdout.write(rendered(outcome, output.format))
        if output.format == "github" and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
            _write(Path(summary), as_markdown(outcome), appended=True)


def rendered(outcome: Outcome, format: str) -> str:
    """``outcome`` in one format."""
    if format == "json":
        return json.dumps(outcome.as_json(), indent=1, allow_nan=False) + "\n"
    if format == "sarif":
        return json.dumps(as_sarif(outcome), indent=1, allow_nan=False) + "\n"
    if format == "github":
        text = as_github(outcome)
        return f"{text}\n" if text else ""
    if format == "junit":
        from unitify.check.junit import as_junit  # Its library is loaded on demand.

        return as_junit(outcome)
    if format == "markdown":
        return as_markdown(outcome)
    written = io.StringIO()
    Console(file=written, no_color=True, emoji=False).print(
        as_text(outcome), highlight=False, soft_wrap=True
    )
    return written.getvalue()


def _write(path: Path, text: str, appended: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a" if appended else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        problem = error.strerror or str(error)
        raise UnitifyError(NotWritten(path=str(path), problem=problem)) from None


def _unknown(option: str, value: str, choices: str) -> UnitifyError:
    return UnitifyError(UnknownOption(option=option, value=value, choices=choices))
