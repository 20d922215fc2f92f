"""Findings about what a graph does not hold: what was left out, lost, or has no rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unitify.check.finding import Finding
from unitify.check.places import Places
from unitify.diagnostics import Diagnostic, GradientLost

#: Codes that a checked model breaks by; what else is left out is only less than it could be.
_BREAKS = {GradientLost.code}


def left_out(diagnostics: Iterable[Diagnostic], places: Places) -> Iterator[Finding]:
    """A finding for everything that is not kept, at the line where it is written."""
    innermost: dict[tuple[object, ...], Finding] = {}
    for diagnostic in diagnostics:
        if not diagnostic.is_loss:
            continue
        path = _path(diagnostic.where, places)
        place = places.of_frames(diagnostic.frames, path)
        finding = Finding(
            diagnostic=diagnostic,
            name=path or type(places.modules[""]).__name__,
            module=path,
            place=place,
            severity="error" if diagnostic.code in _BREAKS else "warning",
        )
        # A module that holds one that fails, fails for the same reason.
        why = getattr(diagnostic, "reason", None) or diagnostic.message
        same = diagnostic.code, why, place if diagnostic.frames else path
        innermost[same] = finding
    yield from innermost.values()


def _path(where: str, places: Places) -> str:
    """The path of the module that a diagnostic is about; "" for the whole model."""
    first = where.partition(" ")[0]
    return first if first in places.modules else ""
