"""The pages: every block of Python in them runs, and no link leads nowhere."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from slow import some_slow

import unitify
import unitify.check
from unitify.rule_trials.page import LONGEST

ROOT = Path(__file__).resolve().parent.parent
#: A fenced block: its language, the file that it is, its text.
FENCED = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.+?)^```", re.DOTALL | re.MULTILINE)
PAGES = {
    page: FENCED.findall(page.read_text("utf-8"))
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
RUN = {page for page, blocks in PAGES.items() if {"python", "sh"} & {kind for kind, *_ in blocks}}


#: A tutorial is a whole piece of work.
TUTORIALS = {page for page in RUN if page.parent.name == "tutorials"}


@pytest.mark.parametrize(
    "page",
    some_slow(sorted(RUN), TUTORIALS.__contains__),
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order: files are written, Python shares a scope, tests and commands are run.

    A block of text is what they print, but for its figures; "…" stands for lines left out.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    printed = io.StringIO()
    for kind, file, text in PAGES[page]:
        if file:
            (tmp_path / file).write_text(text)
        elif kind == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                printed.write(run(line, tmp_path))
        elif kind == "text":
            shown = {without_figures(line) for line in text.splitlines()} - {"…"}
            assert shown <= {without_figures(line) for line in printed.getvalue().splitlines()}
        elif "def test_" in text:
            (tmp_path / "test_block.py").write_text(text)
            run("python -m pytest -q -p no:cacheprovider test_block.py", tmp_path)
        elif kind == "python":
            with contextlib.redirect_stdout(printed):
                exec(compile(text, page.name, "exec"), scope)


def without_figures(line: str) -> str:
    return " ".join(re.sub(r"(?<!\w)-?\d[\d.]*(e-?\d+)?", "#", line).split())


def run(line: str, folder: Path) -> str:
    """What a command prints; ``# exits with N`` behind it says which exit status is right."""
    command, _, status = line.partition("# exits with ")
    words = [sys.executable, "-m", *shlex.split(command.removeprefix("python -m "))]
    found = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == int(status or 0), f"{line}\n{found.stdout}{found.stderr}"
    return found.stdout


#: Pages that are written by hand, or by code in the package: results are written by programs.
WRITTEN = [page for page in PAGES if page.parent.name != "results"]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_is_easy_to_read(page: Path) -> None:
    """No cell of a table is a paragraph, and the words are a link away."""
    lines = page.read_text("utf-8").splitlines()
    cells = [c.strip() for line in lines if line.startswith("|") for c in line.split(" | ")]
    assert [cell for cell in cells if len(cell) > LONGEST] == []
    if page.parent.name != "rules" or page.name == "index.md":
        assert page.name == "glossary.md" or "glossary.md" in page.read_text("utf-8")


def test_the_interface_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    listed = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert set(unitify.__all__) - {"__version__"} | set(unitify.check.__all__) <= listed


def test_results_are_listed() -> None:
    results = ROOT / "docs" / "results"
    listed = re.findall(r"^- \[.+\]\((.+)\)$", (results / "index.md").read_text(), re.MULTILINE)
    assert {*listed, "index.md"} == {page.name for page in results.glob("*.md")}


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a page or an anchor that is not there fails."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "transform" in (tmp_path / "site" / "api" / "index.html").read_text("utf-8")
