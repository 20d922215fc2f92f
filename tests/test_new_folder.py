"""A folder is there whole or not at all, and one process writes it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unitify.checkpoint.new_folder import new_folder, sha256
from unitify.diagnostics import FolderDamaged, UnitifyError


def test_a_folder_appears_with_all_of_its_files(tmp_path: Path) -> None:
    path = tmp_path / "above" / "out"
    with new_folder(path) as folder:
        folder.write("one.json", {"a": 1})
        assert not path.exists()
    assert os.listdir(path) == ["one.json"]
    assert os.listdir(path.parent) == ["out"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), ValueError()])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with (
        contextlib.suppress(UnitifyError, KeyboardInterrupt, ValueError),
        new_folder(tmp_path / "out") as folder,
    ):
        folder.write("one.json", {})
        raise error
    assert os.listdir(tmp_path) == []


def test_an_interruption_leaves_what_can_be_resumed_and_a_refusal_nothing(tmp_path: Path) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        new_folder(tmp_path / "out", {"a": 1}),
    ):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [".out.partial"]
    refusal = UnitifyError(FolderDamaged(path="x", problem="y"))
    with (
        contextlib.suppress(UnitifyError),
        new_folder(tmp_path / "out", {"a": 1}, resume=True),
    ):
        raise refusal
    assert os.listdir(tmp_path) == []


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """And does not touch what the first has written."""
    path = tmp_path / "out"
    code = (
        "from pathlib import Path\n"
        "from unitify.checkpoint.new_folder import new_folder\n"
        f"with new_folder(Path({str(path)!r})): pass\n"
    )
    with new_folder(path) as folder:
        folder.write("one.json", {})
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode == 1
        assert "U617" in other.stderr
    assert os.listdir(path) == ["one.json"]


def test_what_was_begun_is_no_part_of_the_folder(tmp_path: Path) -> None:
    """Neither the last document, whose hash no later one can hold, nor half of any."""

    def write(path: Path) -> str:
        path.write_bytes(b"whole")
        return sha256(path)

    partial = tmp_path / ".out.partial"
    with (
        contextlib.suppress(KeyboardInterrupt),
        new_folder(tmp_path / "out", {"a": 1}) as folder,
    ):
        folder.once("one.bin", write)
        folder.write("last.json", {})
        (partial / "two.bin.partial").write_bytes(b"ha")
        (partial / "below").mkdir()
        raise KeyboardInterrupt
    with new_folder(tmp_path / "out", {"a": 1}, resume=True) as folder:
        assert not folder.once("one.bin", write)
        assert list(folder.hashes()) == ["one.bin"]
    assert os.listdir(tmp_path / "out") == ["one.bin"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no place where nobody can write")
def test_a_place_where_no_file_can_be_made() -> None:
    with (
        pytest.raises(UnitifyError, match="cannot be written"),
        new_folder(Path("/proc/out")),
    ):
        pass
