"""Errors of an operation on arguments that it does not accept, apart from errors of our code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

#: Operations raise these for a type, layout or size that they do not accept, and those in Python
#: the last one for an argument that is not there.
_REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


class CannotRun(RuntimeError):
    """An operation does not accept its operands, or depends on data that is not there.

    torch raises a plain ``RuntimeError`` where sizes do not fit.
    """


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """A context for the call of an operation alone: any error in it becomes ``CannotRun``."""
    try:
        yield
    except CannotRun:
        raise
    except _REFUSALS as error:
        raise CannotRun(first_line(error)) from error


def first_line(error: Exception) -> str:
    """The first line of an exception's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
