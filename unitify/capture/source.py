"""Frames: the lines of code that made something, and which of them are the user's own.

Capture keeps the call stack of every node. Here it becomes frames, of a node or of a failure. A
``Repository`` says which frames lie in the user's project: neither in an installed package nor in
unitify.
"""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import fx

_FRAME = re.compile(r'File "(.+)", line (\d+), in .+\n\s*(.*)')
_PACKAGE = Path(__file__).resolve().parent.parent
_STANDARD_LIBRARY = Path(os.path.realpath(sysconfig.get_paths()["stdlib"]))
#: The name that export writes where it knows no module.
_NO_MODULE = "_empty_nn_module_stack"
#: Folders of installed packages, wherever they lie.
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Frame:
    """One line of a call stack; ``text`` is its source, "" where that is not known."""

    file: str
    line: int
    text: str = ""

    @property
    def at(self) -> tuple[str, int]:
        """File and line alone, as diagnostics carry them."""
        return self.file, self.line

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def frames_of(node: fx.Node) -> tuple[Frame, ...]:
    """The call stack of a node as capture recorded it, outermost first; () for none."""
    trace = str(node.meta.get("stack_trace") or "")
    return tuple(Frame(file, int(line), text.strip()) for file, line, text in _FRAME.findall(trace))


def frames_of_failure(found: TracebackType | None) -> tuple[Frame, ...]:
    """The frames that an exception passed, outermost first."""
    return _summarized(traceback.extract_tb(found))


def frames_of_call() -> tuple[Frame, ...]:
    """The frames of the call that is running, outermost first, up to the caller's caller."""
    return _summarized(traceback.extract_stack()[:-2])


def _summarized(stack: Iterable[traceback.FrameSummary]) -> tuple[Frame, ...]:
    return tuple(Frame(f.filename, f.lineno or 0, (f.line or "").strip()) for f in stack)


def module_of(node: fx.Node) -> tuple[str, str]:
    """Path and class name of the innermost module that recorded a node; ("", "") for none."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    if str(path).startswith(_NO_MODULE):
        return "", ""
    return str(path), str(kind).rpartition(".")[2]


def without_torch(frames: Iterable[Frame]) -> list[Frame]:
    """The frames that are not torch's own."""
    return [frame for frame in frames if "/torch/" not in frame.file.replace("\\", "/")]


@dataclass(frozen=True)
class Repository:
    """The user's project: everything below ``root`` that is not installed."""

    root: Path

    @classmethod
    def around(cls, folder: Path) -> Self:
        """The nearest folder upwards that git knows; ``folder`` itself where there is none."""
        start = folder.resolve()
        for candidate in (start, *start.parents):
            if (candidate / ".git").exists():
                return cls(candidate)
        return cls(start)

    def holds(self, file: str | Path) -> bool:
        """Is the file one of the project?"""
        return self.relative(file) is not None

    def relative(self, file: str | Path) -> str | None:
        """Path of a file of the project from its root, with slashes; None for any other file."""
        return _relative(self.root, str(file))

    def last(self, frames: Iterable[Frame]) -> Frame | None:
        """The innermost frame of the project, with its file from the root; None for none."""
        for frame in reversed(list(frames)):
            relative = self.relative(frame.file)
            if relative is not None:
                return Frame(relative, frame.line, frame.text)
        return None


def is_library(file: str | Path) -> bool:
    """Is a file, by its real path, one of unitify or of Python's own?"""
    path = Path(file)
    own = not _INSTALLED.intersection(path.parts) and path.is_relative_to(_STANDARD_LIBRARY)
    return own or path.is_relative_to(_PACKAGE)


@cache
def _relative(root: Path, file: str) -> str | None:
    path = Path(os.path.realpath(file))
    if is_library(path) or _INSTALLED.intersection(path.parts):
        return None
    if not path.is_relative_to(root) or not path.is_file():
        return None
    return path.relative_to(root).as_posix()
