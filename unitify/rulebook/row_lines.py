"""The line of each key of a TOML file, for messages about a row."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]
#: Lines of a statement.
_LONGEST = 200


def lines_of(text: str) -> dict[Path, int]:
    """Path of keys → the first line (from 1) of its statement.

    A statement is a header, or a key with its value. TOML's own parser finds where it ends.
    """
    found: dict[Path, int] = {}
    inside: Path = ()
    pending, start = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        start = start if pending else number
        # Each line of a statement parses it again, so a longer one has no lines.
        if number - start > _LONGEST:
            break
        pending += f"{line}\n"
        try:
            held = tomllib.loads(pending)
        except tomllib.TOMLDecodeError:
            continue
        if line.lstrip().startswith("[") and start == number:
            *_, inside = _paths(held)
            found.setdefault(inside, start)
        else:
            found |= {(*inside, *p): start for p in _paths(held) if (*inside, *p) not in found}
        pending = ""
    return found


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """The line of a path, or of its longest prefix in the file; 0 without one."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 0


def failing_line(error: tomllib.TOMLDecodeError, text: str) -> int:
    """The line at which TOML's parser failed."""
    found = re.search(r"\(at line (\d+)", str(error))
    return int(found.group(1)) if found else max(len(text.splitlines()), 1)


def _paths(held: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    for key, value in held.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))
