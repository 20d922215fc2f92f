"""``new_folder``: writes a folder completely or not at all.

It is made as ``.NAME.partial`` beside its final path, and renamed when it is complete. Only one
process at a time makes it. After an interruption it is kept if a run of the same request can
resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from unitify.diagnostics import NotWritten, OutputExists, OutputInUse, UnitifyError
from unitify.documents import open_file, read_json

_PROGRESS = "progress.json"


def check_absent(path: Path) -> None:
    """Raises ``UnitifyError`` where ``path`` exists (U605) or cannot be written (U606)."""
    if os.path.lexists(path):
        raise UnitifyError(OutputExists(path=str(path)))
    above = next(p for p in path.absolute().parents if p.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UnitifyError(NotWritten(path=str(path), problem=f"{above} is not writable"))


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def new_folder(
    path: Path, request: Mapping[str, Any] | None = None, *, resume: bool = False
) -> Iterator[Folder]:
    """A context with a folder to write into. Afterwards ``path`` is complete, or does not exist.

    ``request``: identifies the contents, so that a run with ``resume`` can continue an interrupted
    one. None: an interrupted run leaves nothing.

    Raises ``UnitifyError``: U605 where ``path`` exists; U606 where it cannot be written; U617 where
    another process is writing it.
    """
    check_absent(path)
    partial = path.absolute().with_name(f".{path.name}.partial")
    lock = partial.with_suffix(".lock")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(lock).acquire(timeout=0),
            _leaving(partial, lock, is_kept=request is not None),
        ):
            folder = Folder(partial, request or {}, resume)
            yield folder
            folder.finish()
            os.rename(partial, path)
    except Timeout:
        if not lock.exists():
            problem = f"no file can be made in {partial.parent}"
            raise UnitifyError(NotWritten(path=str(path), problem=problem)) from None
        raise UnitifyError(OutputInUse(path=str(path))) from None
    except (OSError, SafetensorError) as error:
        if os.path.lexists(path):
            raise UnitifyError(OutputExists(path=str(path))) from None
        raise UnitifyError(NotWritten(path=str(path), problem=str(error))) from error


@contextlib.contextmanager
def _leaving(partial: Path, lock: Path, is_kept: bool) -> Iterator[None]:
    """A context that removes ``partial`` after an error, and after an interruption if not kept."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, UnitifyError) or not is_kept:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        lock.unlink(missing_ok=True)


class Folder:
    """An incomplete folder, at ``partial``."""

    def __init__(self, partial: Path, request: Mapping[str, Any], resume: bool) -> None:
        self.partial = partial
        text = json.dumps(request, sort_keys=True)
        self.request = hashlib.sha256(text.encode()).hexdigest()
        #: Complete files, with their SHA-256.
        self.done: dict[str, str] = self._begun() if resume else {}
        if not self.done:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        self._remove_others()
        self._note()

    def _remove_others(self) -> None:
        """Remove what an interrupted run had begun. It would be taken for a part of the folder."""
        for path in self.partial.iterdir():
            if path.name in self.done:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _begun(self) -> dict[str, str]:
        """Complete files of an interrupted run of the same request."""
        try:
            noted = read_json(self.partial / _PROGRESS)
        except (OSError, ValueError):
            return {}
        files = noted.get("done") if isinstance(noted, dict) else None
        if not isinstance(files, dict) or noted.get("request") != self.request:
            return {}
        places = {name: self.partial / Path(name).name for name in files}
        return {
            name: digest
            for name, digest in files.items()
            if places[name].is_file() and sha256(places[name]) == digest
        }

    def _note(self) -> None:
        self.write(_PROGRESS, {"request": self.request, "done": self.done})

    def once(self, name: str, write: Callable[[Path], str]) -> bool:
        """Make a file by ``write``, which returns its SHA-256, unless an earlier run did.

        Returns whether it was made now.
        """
        if name in self.done:
            return False
        self.done[name] = write(self.partial / name)
        self._note()
        return True

    def write(self, name: str, document: Any, *, sort_keys: bool = False) -> None:
        """Write a JSON file, completely or not at all."""
        text = json.dumps(document, indent=1, sort_keys=sort_keys) + "\n"
        partial = self.partial / f"{name}.partial"
        partial.write_text(text, "utf-8")
        os.rename(partial, self.partial / name)

    def copy(self, files: Iterable[Path], below: str = "") -> None:
        """Copy files into the folder, or into the folder ``below`` in it."""
        for file in files:
            (self.partial / below).mkdir(exist_ok=True)
            shutil.copyfile(file, self.partial / below / file.name)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every file, by its path in the folder."""
        files = sorted(p for p in self.partial.rglob("*") if p.is_file() and p.name != _PROGRESS)
        names = {p: p.relative_to(self.partial).as_posix() for p in files}
        return {name: self.done.get(name) or sha256(p) for p, name in names.items()}

    def finish(self) -> None:
        """Remove the note of progress."""
        (self.partial / _PROGRESS).unlink()
