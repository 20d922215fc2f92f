"""What an operation refuses, told apart from what is wrong in the code that runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: What operations raise when they want another type, layout or size than they were given.
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError)


class CannotRun(RuntimeError):
    """An operation does not take what it was run on, or nobody knows what it needs without data.

    torch says the same by a plain ``RuntimeError`` where sizes do not fit.
    """


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Around a call of an operation alone: whatever it raises is ``CannotRun``."""
    try:
        yield
    except CannotRun:
        raise
    except _REFUSALS as error:
        raise CannotRun(first_line(error)) from error


def first_line(error: Exception) -> str:
    """What an exception says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
