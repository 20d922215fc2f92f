"""The page of a report: one HTML file that contains everything, and requests nothing.

Takes ``Numerics``; gives bytes. Data and the plotting library are compressed and in base64, so no
name of a checkpoint is ever part of the markup. The template escapes all text. The page's own
policy forbids every request, and every script but ours.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unitify.diagnostics import check_package
from unitify.formats.losses import NOTABLE
from unitify.report.document import dumps
from unitify.report.numerics import DIRECTIONS, GRAPHS, Numerics
from unitify.report.report import apart
from unitify.report.sections import SECTIONS
from unitify.report.summary import losses, lowest_ratio
from unitify.version import __version__

STYLES = ("colors", "page", "controls", "tables", "panel", "narrow")
#: The scripts of the page, in the order of their use.
SCRIPTS = (
    "base", "unpack", "model", "theme", "print", "tooltip", "folding", "figures", "grid",
    "value_cells", "verdict", "scales", "exponents", "losses", "agreement", "noise",
    "values_table", "classes", "casts", "drift", "findings", "details", "start",
)  # fmt: skip
#: CSS classes of the marks in figures, and their legend.
LEGEND = (
    ("original", "original"),
    ("transformed", "transformed"),
    ("unit", "unit RMS, within [1/2, 2]"),
    ("range", "normal range of the format"),
    ("subnormal", "subnormal"),
    ("input", "input or parameter"),
    ("rounding", "zero but for rounding"),
)


@dataclass(frozen=True)
class Tile:
    """A number of the whole model, after the transformation and, where it exists, before."""

    what: str
    after: str
    note: str
    before: str | None = None


def page(numerics: Numerics) -> bytes:
    """The report as one HTML file. The same numerics give the same bytes.

    Raises ``UnitifyError`` (U005) where plotly is not installed.
    """
    plotly = _packed_plotly()
    data = _packed(dumps(numerics))
    text = (
        environment()
        .get_template("page.html.j2")
        .render(
            model=numerics.model,
            version=__version__,
            nonce=hashlib.sha256(data.encode()).hexdigest()[:32],
            subtitle=list(_subtitle(numerics)),
            tiles=list(_tiles(numerics)),
            sections=SECTIONS,
            legend=LEGEND,
            style=Markup("\n".join(_template(f"{name}.css") for name in STYLES)),
            script=Markup("\n".join(_template(f"{name}.js") for name in SCRIPTS)),
            data=data,
            plotly=plotly,
        )
    )
    return text.encode()


@cache
def environment() -> Environment:
    """The templates of reports. They escape all text."""
    loader = PackageLoader("unitify.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined)


def _subtitle(numerics: Numerics) -> Iterator[str]:
    if numerics.target:
        yield numerics.target
    yield f"{numerics.parameters:,} parameters"
    yield f"{len(numerics.values):,} values"
    yield f"scales: {numerics.scales}"
    batches = f"{numerics.batches} batch{'' if numerics.batches == 1 else 'es'}"
    yield f"measured on {batches}" if numerics.batches else "predicted, without data"
    applied = "" if numerics.is_applied else " (not applied)"
    yield f"recipe {numerics.recipe.name}{applied}"


def _tiles(numerics: Numerics) -> Iterator[Tile]:
    for direction, name in zip(DIRECTIONS, ("Values", "Gradients"), strict=True):
        before, total = numerics.unit_share(direction, "original")
        after, _ = numerics.unit_share(direction, "transformed")
        if total:
            note = f"of {total:,}; RMS within [1/2, 2]{apart(numerics.true_weights(direction))}"
            yield Tile(f"{name} at unit RMS", _percent(after, total), note, _percent(before, total))
    formats = f"{numerics.recipe.forward.name.upper()} / {numerics.recipe.backward.name.upper()}"
    bad = [sum(lost.worst > NOTABLE for lost in losses(numerics, graph)) for graph in GRAPHS]
    note = "values and gradients, to zero or beyond the range; the verdict judges by other limits"
    yield Tile(f"Losing over 1 % in {formats}", f"{bad[1]:,}", note, f"{bad[0]:,}")
    ratios = [lowest_ratio(numerics, graph) for graph in GRAPHS]
    if ratios[1] is not None:
        before_text = "–" if ratios[0] is None else _decibels(ratios[0])
        note = f"of any value under {numerics.recipe.name}"
        yield Tile("Lowest signal to noise", f"{_decibels(ratios[1])} dB", note, before_text)
    verdict = {None: "not verified", True: "bitwise", False: "not exact"}[numerics.exact]
    yield Tile("Against the original", verdict, "outputs and gradients, before casts")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _decibels(ratio: float) -> str:
    return f"{ratio:.1f}".replace("-", "−")


def _template(name: str) -> str:
    return (resources.files("unitify.report") / "templates" / name).read_text("utf-8")


def _packed(text: str) -> str:
    """gzip in base64, without a time stamp."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@cache
def _packed_plotly() -> str:
    """The plotting library, from the package plotly."""
    check_package("plotly", "a report as a page")
    from plotly.offline import get_plotlyjs

    return _packed(get_plotlyjs())
