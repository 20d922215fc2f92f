"""The origin of a value: its module, and the source line that makes it, with its neighbors.

Takes a node of a captured graph; gives ``Origin``. Files are read, never run. A parameter has the
line that creates it, an input that of the ``forward`` that takes it.
"""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from unitify.capture.islands import path_of
from unitify.capture.source import (
    Frame,
    Repository,
    frames_of,
    is_library,
    module_of,
    without_torch,
)
from unitify.check.source_lines import SourceLines
from unitify.naming import joined

#: Source lines shown above and below the one that computes a value.
AROUND = 2


@dataclass(frozen=True)
class Origin:
    """``module``: its path ("" for the model itself); ``kind``: its class. ``file``: absolute.

    ``shown``: the file relative to the working folder or to the folder of packages. ``excerpt``:
    source lines from ``first`` on; empty where the file cannot be read.
    """

    module: str = ""
    kind: str = ""
    file: str = ""
    shown: str = ""
    line: int = 0
    first: int = 0
    excerpt: tuple[str, ...] = ()


class Anywhere(Repository):
    """A project, and behind it all Python files but those of torch and unitify; all absolute."""

    def relative(self, file: str | Path) -> str | None:
        """The real path of such a file; None for any other."""
        path = os.path.realpath(file)
        is_own = path.endswith(".py") and not is_library(path) and "/torch/" not in path
        return path if is_own and os.path.isfile(path) else None

    def last(self, frames: Iterable[Frame]) -> Frame | None:
        """The innermost frame of the project, else of any file."""
        found = [frame for frame in frames if self.holds(frame.file)]
        own = [frame for frame in found if Repository.relative(self, frame.file) is not None]
        return (own or found)[-1] if found else None


def origin_of(node: fx.Node, lines: SourceLines, part: str = "") -> Origin:
    """The origin of a node's result. ``part``: the name of the graph."""
    path, kind = module_of(node)
    if node.op == "get_attr":
        path = str(node.target).rpartition(".")[0]
    module = joined(path_of(part), path)
    frames = frames_of(node)
    frame = (without_torch(frames) or frames)[-1] if frames else lines.of_node(part, node)
    if not frame.file:
        return Origin(module, kind)
    first = max(frame.line - AROUND, 1)
    near = (linecache.getline(frame.file, n) for n in range(first, frame.line + AROUND + 1))
    excerpt = tuple(line.rstrip("\n") for line in near)
    held = excerpt if any(excerpt) else ()
    return Origin(module, kind, frame.file, shown(frame.file), frame.line, first, held)


def shown(file: str) -> str:
    """A file relative to the working folder, or to the folder of its installed package."""
    path = Path(file)
    for index, part in enumerate(path.parts):
        if part in ("site-packages", "dist-packages"):
            return Path(*path.parts[index + 1 :]).as_posix()
    try:
        return path.relative_to(os.getcwd()).as_posix()
    except ValueError:
        return file
