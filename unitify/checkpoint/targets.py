"""Functions named ``package.module:name`` on a command line.

Imports a function from the working folder or the installed packages, calls it without arguments,
and checks its result. Any failure is U604, on one line.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from unitify.capture.source import frames_of_failure
from unitify.diagnostics import BatchesNeeded, FactoryFailed, ImportFailed, UnitifyError

#: A tuple of positional or a mapping of keyword inputs.
Batch = tuple[Any, ...] | Mapping[str, Any]


def build_model(target: str) -> nn.Module:
    """The module that the factory ``target`` returns.

    Raises ``UnitifyError`` (U604) where it cannot be imported, raises, or returns something else.
    """
    model = _call(target)
    if not isinstance(model, nn.Module):
        raise _failed(target, f"it returned {_article(model)}, not an nn.Module")
    return model


def input_batches(target: str) -> list[Batch]:
    """The batches that the function ``target`` returns; the first one is the example.

    A tensor, a tuple or a mapping is one batch. A list has a tuple or a mapping for each batch (a
    list of tensors would be ambiguous).

    Raises ``UnitifyError``: U604 for anything else; U003 for an empty list.
    """
    result = _call(target)
    batches = result if isinstance(result, list) else [result]
    if isinstance(result, Tensor):
        return [(result,)]
    if not batches:
        raise UnitifyError(BatchesNeeded(where=target))
    for batch in batches:
        if not isinstance(batch, tuple | Mapping):
            expected = "a tensor, a tuple of inputs, a dict of keyword inputs or a list of the two"
            raise _failed(target, f"it returned {_article(result)}, not {expected}")
    return batches


def import_target(target: str) -> Callable[[], Any]:
    """The callable named ``package.module:name``.

    The working folder comes first in the import path, as with ``python -m``.
    Raises ``UnitifyError`` (U604) where there is none.
    """
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise _failed(target, "it has not the form package.module:name")
    _look_here()
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        problem = f"importing {module_name} failed with {_first_line(error)}"
        raise _failed(target, problem, error) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise _failed(target, f"{module_name} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise _failed(target, f"{name} is {_article(found)}, which cannot be called")
    called: Callable[[], Any] = found
    return called


def import_libraries(modules: Iterable[str]) -> None:
    """Import modules by their dotted names, so that they register operators with torch.

    Raises ``UnitifyError`` (U207) where one fails.
    """
    _look_here()
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:
            raise UnitifyError(ImportFailed(module=module, problem=_first_line(error))) from error


def _look_here() -> None:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _call(target: str) -> Any:
    function = import_target(target)
    try:
        return function()
    except UnitifyError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(target, f"it failed with {_first_line(error)}", error) from error


def _failed(target: str, problem: str, error: BaseException | None = None) -> UnitifyError:
    """The error to raise. ``error``: that of the user's code, whose line is named."""
    frames = frames_of_failure(error.__traceback__) if error is not None else ()
    own = [frame for frame in frames if frame.file not in (__file__, importlib.__file__)]
    own = [frame for frame in own if not frame.file.startswith("<frozen")]
    where = str(own[-1]) if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    places = tuple(frame.at for frame in own)
    return UnitifyError(FactoryFailed(target=target, problem=problem, where=where, frames=places))


def _article(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
