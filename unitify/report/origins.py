"""The origin of a value: its module, and the source line that computes it, with its neighbors.

Takes a node of a captured graph; gives ``Origin``. Files are read, never run.
"""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass
from pathlib import Path

from torch import fx

from unitify.capture.source import frames_of, module_of, without_torch

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


def origin_of(node: fx.Node, part: str = "") -> Origin:
    """The origin of a node's result. ``part``: the path of the graph's island."""
    path, kind = module_of(node)
    if node.op == "get_attr":
        path = str(node.target).rpartition(".")[0]
    module = f"{part}.{path}".strip(".")
    frames = frames_of(node)
    if not frames:
        return Origin(module, kind)
    frame = (without_torch(frames) or frames)[-1]
    first = max(frame.line - AROUND, 1)
    lines = (linecache.getline(frame.file, n) for n in range(first, frame.line + AROUND + 1))
    excerpt = tuple(line.rstrip("\n") for line in lines)
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
