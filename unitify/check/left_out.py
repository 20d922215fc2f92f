"""Findings about what a graph does not hold: modules left out, gradients lost, rules missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unitify.check.finding import Finding
from unitify.check.source_lines import SourceLines
from unitify.diagnostics import Diagnostic, GradientLost

#: Codes that are errors. Others say only that something could be better.
_BREAKS = {GradientLost.code}


def left_out(diagnostics: Iterable[Diagnostic], lines: SourceLines) -> Iterator[Finding]:
    """A finding for everything that is not kept, at the line where it is written."""
    innermost: dict[tuple[object, ...], Finding] = {}
    for diagnostic in diagnostics:
        if not diagnostic.is_loss:
            continue
        path = _path(diagnostic.where, lines)
        source = lines.of_frames(diagnostic.frames, path)
        finding = Finding(
            diagnostic=diagnostic,
            name=path or type(lines.modules[""]).__name__,
            module=path,
            source=source,
            severity="error" if diagnostic.code in _BREAKS else "warning",
        )
        # A module fails for the same reason as the submodule that fails in it.
        why = getattr(diagnostic, "reason", None) or diagnostic.message
        same = diagnostic.code, why, source if diagnostic.frames else path
        innermost[same] = finding
    yield from innermost.values()


def _path(where: str, lines: SourceLines) -> str:
    """The path of the module that a diagnostic is about; "" for the whole model."""
    first = where.partition(" ")[0]
    return first if first in lines.modules else ""
