"""The main figure of a report for print: log2 RMS of every value in the order of the graph.

Takes ``Numerics``; gives an SVG or PNG file. Values are above gradients, and the original is beside
the transformed graph, with the range of the recipe's formats. After the figure of Blake et al. 2023
(arXiv 2303.11257). matplotlib draws it, which needs no browser; pyplot's global state is not used.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from unitify.diagnostics import check_package
from unitify.formats.table import FORMATS, Format
from unitify.report.numerics import DIRECTIONS, GRAPHS, Numerics, Value

#: The most points across a panel. With more values, modules are folded.
MOST = 400
#: The most names of modules below a panel.
NAMED = 7
#: Width and height in inches, and dots an inch in a PNG file.
SIZE, RESOLUTION = (7.2, 4.5), 200
#: Okabe and Ito 2008, as on the page.
INK = {"original": "#c4530d", "transformed": "#0a6aa6"}
UNIT, RANGE, SUBNORMAL, LINE = "#cfe8df", "#eceef1", "#f6f7f8", "#9aa0a6"


@dataclass(frozen=True)
class Group:
    """One value, or the values of a folded module."""

    path: str
    values: tuple[Value, ...]

    def logs(self, direction: str, graph: str) -> list[float]:
        """log2 RMS of the values that have one; masks are left out."""
        sides = [v.side(direction) for v in self.values if v.kind != "mask"]
        found = [side.rms if graph == "original" else side.stored for side in sides]
        return [math.log2(rms) for rms in found if rms and math.isfinite(rms)]


def folded(values: Iterable[Value], most: int = MOST) -> list[Group]:
    """Groups of one value, or folded modules, as deep as ``most`` groups allow."""
    values = list(values)
    if len(values) <= most:
        return [Group(v.module, (v,)) for v in values]
    deepest = max(v.module.count(".") + 1 for v in values)
    found = [Group("", tuple(values))]
    for depth in range(1, deepest + 1):
        deeper = _stretches(values, depth)
        if len(deeper) > most:
            break
        found = deeper
    return found


def _stretches(values: list[Value], depth: int) -> list[Group]:
    def prefix(value: Value) -> str:
        return ".".join(value.module.split(".")[:depth])

    return [Group(path, tuple(held)) for path, held in groupby(values, prefix)]


def figure(numerics: Numerics, format: str) -> bytes:
    """The figure as the bytes of an "svg" or a "png" file.

    Raises ``UnitifyError`` (U005) without matplotlib.
    """
    check_package("matplotlib", f"a figure as {format}")
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 8, "svg.hashsalt": "unitify", "axes.linewidth": 0.6}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=SIZE, layout="constrained")
        panels = drawn.subplots(2, 2, sharex=True, sharey="row", squeeze=False)
        groups = folded(numerics.values)
        formats = (numerics.recipe.forward, numerics.recipe.backward)
        for row, direction in enumerate(DIRECTIONS):
            for column, graph in enumerate(GRAPHS):
                panel = panels[row][column]
                _panel(panel, groups, direction, graph, FORMATS[formats[row].name])
                if not row:
                    panel.set_title(graph, loc="left", color=INK[graph], fontsize=9)
            name = ("values", "gradients")[row]
            panels[row][0].set_ylabel(f"{name}, log$_2$ RMS")
        for panel in panels[-1]:
            _name_modules(panel, groups)
        file = io.BytesIO()
        metadata = {"Date": None} if format == "svg" else None
        drawn.savefig(file, format=format, dpi=RESOLUTION, metadata=metadata)
    return file.getvalue()


def writer(format: str) -> Callable[[Numerics], bytes]:
    """The function that makes a file of a ``format``."""
    return lambda numerics: figure(numerics, format)


def _panel(panel: Any, groups: list[Group], direction: str, graph: str, format: Format) -> None:
    normal, largest = math.log2(format.smallest_normal), math.log2(format.largest)
    panel.axhspan(math.log2(format.smallest_subnormal), normal, color=SUBNORMAL, zorder=0, lw=0)
    panel.axhspan(normal, largest, color=RANGE, zorder=0, lw=0)
    panel.axhspan(-1, 1, color=UNIT, zorder=0, lw=0)
    logs = [(x, found) for x, g in enumerate(groups) if (found := g.logs(direction, graph))]
    wide = [(x, min(found), max(found)) for x, found in logs if len(found) > 1]
    ink, width = INK[graph], min(max(160 / len(groups), 0.6), 4)
    if wide:
        positions, lows, highs = zip(*wide, strict=True)
        panel.vlines(positions, lows, highs, color=ink, alpha=0.4, lw=width)
    size = min(max(450 / len(groups), 1.6), 3.6)
    medians = [statistics.median(found) for _, found in logs]
    panel.plot([x for x, _ in logs], medians, "o", color=ink, ms=size, mew=0)
    panel.set_xlim(-1, len(groups))
    panel.tick_params(width=0.6, length=3, color=LINE)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(LINE)
    panel.annotate(
        format.name.upper(), (1, largest), xycoords=("axes fraction", "data"), fontsize=6,
        color="#6b7076", ha="right", va="top", xytext=(-2, -2), textcoords="offset points",
    )  # fmt: skip


def _name_modules(panel: Any, groups: list[Group]) -> None:
    """Name the modules with the longest runs of values."""
    values = [group.values[0] for group in groups]
    runs: list[Group] = []
    for depth in range(1, 8):
        deeper = _stretches(values, depth)
        if len(deeper) > 2 * NAMED + 2:
            if any(len(run.values) > len(values) / 2 for run in runs):
                runs = deeper
            break
        runs = deeper
    starts: list[tuple[int, Group]] = []
    at = 0
    for run in runs:
        starts.append((at, run))
        at += len(run.values)
    named: list[tuple[int, str]] = []
    for x, run in sorted(starts, key=lambda start: -len(start[1].values)):
        is_free = all(abs(x - other) > len(groups) / (NAMED + 1) for other, _ in named)
        if run.path and is_free:
            named.append((x, _short(run.path)))
    ticks = [x for x, _ in named], [name for _, name in named]
    panel.set_xticks(*ticks, rotation=30, ha="right", rotation_mode="anchor", fontsize=7)


def _short(path: str) -> str:
    """The end of a module's path that distinguishes it from its neighbors: layer.3, 3.attention."""
    parts = path.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        text = parts[-1]
    elif numbers[-1] == len(parts) - 1:
        text = ".".join(parts[-2:])
    else:
        text = f"{parts[numbers[-1]]}.{parts[-1]}"
    # matplotlib reads text between dollar signs as a formula.
    return (text if len(text) <= 16 else f"{text[:15]}…").replace("$", r"\$")
