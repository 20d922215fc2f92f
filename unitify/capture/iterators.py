"""Iterators of Python that a model holds. A run advances one, and nothing turns it back.

So a run gets a copy, and the model its own again. A copy has the position of its own iterator, and
shares what that iterates over. A generator of Python cannot be copied.
"""

from __future__ import annotations

import itertools
import types
import warnings
from collections.abc import Iterator
from typing import Any

#: Where the types of iterators are that a copy is made of.
_HOMES = ("builtins", itertools.__name__)


def is_iterator(value: Any) -> bool:
    """Is it an iterator of Python itself, such as ``iter(list)``, ``cycle`` or a generator?"""
    return type(value).__module__ in _HOMES and isinstance(value, Iterator)


def twin(iterator: Any) -> Any:
    """An iterator with the same position; None for one that cannot be copied."""
    try:
        make, arguments, *state = _parts(iterator)
        made = make(*map(_of_twin, arguments))
        for held in state:
            if held is not None:
                made.__setstate__(_own(held))
    except (TypeError, AttributeError, ValueError):
        return None
    return made


def position(iterator: Any) -> Any:
    """What differs once ``iterator`` has advanced, in most cases."""
    if isinstance(iterator, types.GeneratorType):
        frame = iterator.gi_frame
        if frame is None:
            return None
        return frame.f_lasti, [*map(id, frame.f_locals.values())], _mark(iterator.gi_yieldfrom)
    try:
        _, arguments, *state = _parts(iterator)
    except (TypeError, AttributeError):
        return None
    return [*map(_mark, (*arguments, *state))]


def _mark(part: Any) -> Any:
    if is_iterator(part):
        return position(part)
    if isinstance(part, list | tuple):
        return [*map(_mark, part)]
    return part if isinstance(part, int | float) else id(part)


def _parts(iterator: Any) -> Any:
    with warnings.catch_warnings():
        # Python 3.14 copies no iterators of ``itertools``.
        warnings.simplefilter("ignore", DeprecationWarning)
        return iterator.__reduce__()


def _of_twin(argument: Any) -> Any:
    if not is_iterator(argument):
        return argument
    made = twin(argument)
    if made is None:
        raise TypeError
    return made


def _own(state: Any) -> Any:
    """A state whose lists no other iterator adds to: ``cycle`` collects what it gave."""
    if isinstance(state, tuple):
        return tuple(map(_own, state))
    return list(state) if isinstance(state, list) else _of_twin(state)
