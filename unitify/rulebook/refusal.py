"""Errors of an operation on arguments that it does not accept, apart from errors of our code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from unitify.diagnostics import error_line

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
        raise CannotRun(error_line(error)) from error
