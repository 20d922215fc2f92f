"""The pages: every block of Python in them runs, and no link leads nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = {
    page: re.findall(r"```python\n(.+?)```", page.read_text("utf-8"), re.DOTALL)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}


@pytest.mark.parametrize("page", [page for page in BLOCKS if BLOCKS[page]], ids=lambda p: p.stem)
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in one scope; tests are run as tests."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    for block in BLOCKS[page]:
        exec(compile(block, page.name, "exec"), scope)
        if "def test_" in block:
            (tmp_path / "test_block.py").write_text(block)
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
            found = subprocess.run(command, capture_output=True, text=True, check=False)
            assert found.returncode == 0, found.stdout


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a page or an anchor that is not there fails."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "transform" in (tmp_path / "site" / "api" / "index.html").read_text("utf-8")
