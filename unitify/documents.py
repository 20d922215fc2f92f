"""Reads files that are not trusted: opens files, JSON and TOML, within limits.

Gives plain data. A file that is anything else is a ``MalformedError``, whose text says why on one
line. A caller turns it into the diagnostic of its kind of file, like an ``OSError``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

from unitify.diagnostics import error_line

#: Bytes of the largest files that are read whole.
JSON_BYTES, TOML_BYTES = 2**28, 2**20
#: No wait for the other end of a pipe, and no change of line ends.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
#: Containers inside each other.
_DEEPEST = 64
#: An escape of half a character, which no output can encode.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class MalformedError(ValueError):
    """A file is not what it has to be."""


@contextlib.contextmanager
def malformed(what: str) -> Iterator[None]:
    """A context for a library that reads a file: whatever it raises is a ``MalformedError``.

    Extensions in Rust raise panics, which are no ``Exception``.
    """
    try:
        yield
    except (MalformedError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise MalformedError(f"{what} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """The line of an error about a file, which may have written any of it: in 200 characters."""
    return error_line(error)[:200]


def open_file(path: Path) -> BufferedReader:
    """Open a regular file. A pipe or a device, which may have no end, is a ``MalformedError``."""
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MalformedError("it is not a file")
    return os.fdopen(descriptor, "rb")


def inside(folder: Path, name: Any) -> Path:
    """The file ``name`` of ``folder``, where ``name`` and its links stay in the folder.

    A snapshot in the cache of Hugging Face has links to the blobs beside it.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or "\\" in name or "\0" in name or parts[0].startswith("/"):
        raise MalformedError(f"it names a file outside its folder, {str(name)[:200]!r}")
    root, path = folder.resolve(), folder.joinpath(*parts)
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    with malformed(f"{name!r} cannot be resolved"):
        real = path.resolve()
    if not any(real.is_relative_to(held) for held in roots):
        raise MalformedError(f"{name!r} is a link to a file outside its folder")
    return path


def read_text(path: Path, most: int) -> str:
    """The text of a file of at most ``most`` bytes."""
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise MalformedError(f"it has more than {most} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"not UTF-8 (byte {error.start})") from None


def read_json(path: Path, *, any_number: bool = False) -> Any:
    """The value in a JSON file, as ``parse_json`` gives it."""
    return parse_json(read_text(path, JSON_BYTES), any_number=any_number)


def parse_json(text: str | bytes, *, any_number: bool = False) -> Any:
    """The value of a JSON text.

    It refuses duplicate keys, deep nesting, half characters, and numbers that are not finite or
    exceed 64 bits. ``any_number`` admits the latter: Python writes and reads them.
    """
    hooks: dict[str, Any] = {"parse_constant": _refused, "parse_float": _finite}
    hooks = {} if any_number else {**hooks, "parse_int": _integer}
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_object, **hooks)
        _check_depth(value)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except MalformedError:
        raise
    except RecursionError:
        raise MalformedError("not JSON (nested too deeply)") from None
    except ValueError as error:
        raise MalformedError(f"not JSON ({first_line(error)})") from None
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file, as ``parse_toml`` gives it."""
    return parse_toml(read_text(path, TOML_BYTES))


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises ``tomllib.TOMLDecodeError``, a ``ValueError`` that names the line, for other text.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise MalformedError("not TOML (nested too deeply)") from None
    _check_depth(table)
    return table


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise MalformedError(f"the key {twice[:200]!r} is there twice")
    return found


def _refused(number: str) -> Any:
    raise MalformedError(f"the number {number[:40]} is not finite")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _integer(text: str) -> int:
    number = int(text) if len(text) < 32 else 2**64
    if abs(number) >= 2**64:
        raise MalformedError(f"the number {text[:40]} has more than 64 bits")
    return number


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for held in level for inner in _inner(held)]
        if not level:
            return
    raise MalformedError("nested too deeply")


def _inner(held: Any) -> list[Any]:
    """The containers in a container."""
    values = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return [inner for inner in values if isinstance(inner, dict | list)]
