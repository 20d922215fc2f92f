"""Files of strangers: whole ones, what is changed in them, and what reading them may not do.

``attempt`` reads one changed input. Right is a ``UnitifyError`` with a code, or a result. Anything
else that is raised, a write outside the output folder, a started program, a long time and much
memory are counted, and fail.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unitify.diagnostics import UnitifyError

#: What counts as a hang, in seconds, and as memory without bound, in KiB.
SECONDS, MEMORY = 20.0, 2**20

#: Values for any place of a document.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e308, -1e308,
    float("nan"), float("inf"), "", "x", "../../etc/passwd", "/dev/zero", "a\0b", "\ud800",
    "\x1b[2J", "9" * 400, "float32", "e4m3", "nn", "__class__", [], {}, [[]], [0], ["x"],
    [-1, 2**40], {"x": 0}, {"tensor": {"dtype": "float32", "shape": [10**6, 10**6]}},
    {"": {}},
)  # fmt: skip


class HangError(BaseException):
    """An input has taken too long."""


class Counts:
    """What was tried, by kind of input, and what came of it."""

    def __init__(self) -> None:
        self.tried, self.refused = Counter[str](), Counter[str]()
        self.crashes: list[str] = []
        self.outside: list[str] = []
        self.executed: list[str] = []
        self.most_seconds = self.most_memory = 0.0


COUNTS = Counts()
#: The folder in which writes are right, and what was seen; None outside of an attempt.
_watched: tuple[Path, Counts] | None = None

_WRITES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2,
    "os.truncate": 1, "shutil.copyfile": 2, "shutil.rmtree": 1,
}  # fmt: skip
#: No file, and the folder of the compiler of torch.
_OTHERS = (os.devnull, os.path.join(tempfile.gettempdir(), "torchinductor_"))
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    folder, counts = _watched
    if event in _PROGRAMS:
        counts.executed.append(f"{event} {arguments}")
    paths: tuple[Any, ...] = ()
    if event == "open":
        path, mode, flags = arguments
        is_written = any(c in str(mode or "") for c in "wax+") or (flags or 0) & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT
        )
        paths = (path,) if is_written else ()
    elif event in _WRITES:
        paths = arguments[: _WRITES[event]]
        paths = paths[-1:] if event == "shutil.copyfile" else paths
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            real = Path(os.fsdecode(path)).absolute()
            if not (real.is_relative_to(folder) or str(real).startswith(_OTHERS)):
                counts.outside.append(f"{event} {real}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def _watching(folder: Path, counts: Counts) -> Iterator[None]:
    global _watched

    def hang(*_: Any) -> None:
        raise HangError

    held, bytecode = signal.signal(signal.SIGALRM, hang), sys.dont_write_bytecode
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF)
    _watched, sys.dont_write_bytecode = (folder, counts), True
    try:
        yield
    finally:
        _watched, sys.dont_write_bytecode = None, bytecode
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, held)
        after = resource.getrusage(resource.RUSAGE_SELF)
        counts.most_seconds = max(counts.most_seconds, after.ru_utime - before.ru_utime)
        counts.most_memory = max(counts.most_memory, after.ru_maxrss - before.ru_maxrss)


def attempt(kind: str, folder: Path, action: Callable[[], object], counts: Counts = COUNTS) -> str:
    """Run ``action``, which may write into ``folder``. Returns the code of a refusal, else ""."""
    counts.tried[kind] += 1
    seen = len(counts.outside), len(counts.executed)
    code = ""
    try:
        with _watching(folder, counts), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except UnitifyError as error:
        code = error.code
        counts.refused[kind] += 1
        # It can be printed, on one line for each finding.
        if len(str(error).encode("utf-8").splitlines()) != len(error.diagnostics):
            raise AssertionError(str(error)) from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        counts.crashes.append(f"{kind}: {type(error).__name__}: {error}"[:300])
        raise AssertionError(counts.crashes[-1]) from error
    assert counts.outside[seen[0] :] == [], counts.outside
    assert counts.executed[seen[1] :] == [], counts.executed
    assert counts.most_memory < MEMORY, f"{kind}: {counts.most_memory} KiB"
    return code


# -- changes -----------------------------------------------------------------------------


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """``data`` cut, with bits flipped, or with bytes replaced, doubled or left out."""
    made = bytearray(data)
    how = draw.choice(("cut", "flip", "flip", "set", "leave out", "double", "fill"))
    at = draw.randrange(len(made)) if made else 0
    # Most of what decides is at one of the ends.
    if made and draw.random() < 0.5:
        at = draw.choice((at % 400, len(made) - 1 - at % 400)) % len(made)
    length = draw.choice((1, 2, 4, 8, 64))
    if how == "cut":
        del made[at:]
    elif how == "leave out":
        del made[at : at + length]
    elif how == "double":
        made[at:at] = made[at : at + length]
    elif how == "fill":
        made[at : at + length] = draw.choice((b"\0", b"\xff", b"[", b"\x80")) * length
    else:
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = (at + draw.randrange(length)) % max(len(made), 1)
            if made:
                made[place] = (
                    draw.randrange(256) if how == "set" else made[place] ^ (1 << draw.randrange(8))
                )
    return bytes(made)


def changed_document(document: Any, draw: random.Random) -> Any:
    """A copy of ``document`` with one to three places replaced, left out or doubled."""
    made = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(made))
        if not places:
            return draw.choice(NASTY)
        holder, key = draw.choice(places)
        how = draw.random()
        if how < 0.15:
            del holder[key]
        elif how < 0.25 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif how < 0.35 and isinstance(holder, dict):
            holder[draw.choice(("x", "", "../x", "a.b.c", "\x1b[2J"))] = holder.pop(key)
        elif how < 0.5:
            other, its = draw.choice(places)
            with contextlib.suppress(LookupError):
                holder[key] = copy.deepcopy(other[its])
        else:
            holder[key] = copy.deepcopy(draw.choice(NASTY))
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pending = [value]
    while pending:
        held = pending.pop()
        keys = held.keys() if isinstance(held, dict) else range(len(held))
        for key in keys:
            yield held, key
            if isinstance(held[key], dict | list):
                pending.append(held[key])


def changed_json(text: str, draw: random.Random) -> bytes:
    """The bytes of a JSON text after a change of its values, or of its letters."""
    if draw.random() < 0.3:
        return changed_bytes(text.encode(), draw)
    made = json.dumps(changed_document(json.loads(text), draw))
    if draw.random() < 0.1:
        # A key twice, and values inside each other.
        made = made.replace("{", '{"x": 1, "x": 2, ', 1)
    if draw.random() < 0.1:
        depth = draw.choice((70, 1000, 100_000))
        made = made.replace(": ", f': {"[" * depth}{"]" * depth}, "y": ', 1)
    return made.encode()
