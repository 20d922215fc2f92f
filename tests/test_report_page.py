"""The files of a report: a page that holds all it shows, figures, and what is refused."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_report import many, residual_report

from unitify.diagnostics import UnitifyError
from unitify.report.figure import folded
from unitify.report.model_report import ModelReport, format_of
from unitify.report.page import SCRIPTS, STYLES, page
from unitify.report.sections import SECTIONS

TEMPLATES = Path(__file__).resolve().parent.parent / "unitify" / "report" / "templates"


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.inside: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = [dict(attrs).get("id")] if tag == "script" else []

    def handle_endtag(self, tag: str) -> None:
        self.inside = []

    def handle_data(self, data: str) -> None:
        for name in self.inside:
            self.scripts[name] = self.scripts.get(name, "") + data


@pytest.fixture(scope="module")
def written() -> str:
    return page(residual_report().numerics).decode()


def test_the_page_holds_the_numbers_of_the_json(written: str) -> None:
    packed = Tags(written).scripts["packed-report"]
    text = gzip.decompress(base64.b64decode(packed)).decode()
    assert text.encode() == residual_report().rendered("json")


def test_nothing_outside_of_the_file_is_named(written: str) -> None:
    assert re.findall(r"https?://|//[a-z]+\.", written) == []
    found = Tags(written)
    linked = [a[k] or "" for _, a in found.tags for k in ("src", "href", "action") if k in a]
    assert all(address.startswith("#") for address in linked)
    policy = next(a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none'; script-src 'nonce-")


def test_no_name_of_a_checkpoint_is_markup(written: str) -> None:
    assert "onerror" not in written
    assert "<img" not in written
    assert not any(name.startswith("on") for _, a in Tags(written).tags for name in a)


def test_a_hostile_class_and_target_are_escaped() -> None:
    from dataclasses import replace

    name = '"><img src=x onerror=boom()>'
    numerics = replace(residual_report().numerics, model=name, target=name)
    for text in (page(numerics).decode(), ModelReport(numerics)._repr_html_()):
        assert "<img src=x" not in text
        assert "&lt;img src=x onerror=boom()&gt;" in text
        assert not any("onerror" in attributes for _, attributes in Tags(text).tags)


def test_the_same_numbers_make_the_same_file(written: str) -> None:
    assert page(residual_report().numerics).decode() == written


def test_every_script_is_in_the_page_and_every_section_filled() -> None:
    assert {f"{name}.js" for name in SCRIPTS} == {path.name for path in TEMPLATES.glob("*.js")}
    assert {f"{name}.css" for name in STYLES} == {path.name for path in TEMPLATES.glob("*.css")}
    text = "".join((TEMPLATES / f"{name}.js").read_text("utf-8") for name in SCRIPTS)
    assert "</script" not in text
    assert {f'section("{section.id}")' in text for section in SECTIONS} == {True}


def test_size_and_time_grow_with_the_values() -> None:
    """2 MB are the plotting library; a value costs a few hundred bytes."""
    empty, start = len(page(many(0))), time.perf_counter()
    large = len(page(many(6_000)))
    assert time.perf_counter() - start < 60
    assert 1_500_000 < empty < 2_500_000
    assert (large - empty) / 6_000 < 400


def test_a_notebook_shows_facts_and_a_figure() -> None:
    text = residual_report()._repr_html_()
    tags = Tags(text).tags
    assert "script" not in {tag for tag, _ in tags}
    (image,) = [a for tag, a in tags if tag == "img"]
    assert (image["src"] or "").startswith("data:image/svg+xml;base64,")
    assert "gradients at unit RMS" in text
    assert len(text) < 300_000


@pytest.mark.parametrize("count", [None, 6_000])
def test_the_figure_for_print(tmp_path: Path, count: int | None) -> None:
    report = residual_report() if count is None else ModelReport(many(count))
    report.save(tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_bytes()
    assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawn) < 400_000
    assert drawn == report.rendered("svg")
    report.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_folds_what_is_too_much() -> None:
    values = many(6_000).values
    groups = folded(values, 600)
    assert 300 < len(groups) <= 600
    assert [v.name for group in groups for v in group.values] == [v.name for v in values]
    assert all(len({v.module.split(".")[1] for v in group.values}) == 1 for group in groups)
    assert len(folded(values[:100])) == 100


@pytest.mark.parametrize(("package", "format"), [("plotly", "html"), ("matplotlib", "svg")])
def test_a_missing_package_is_named(
    package: str, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unitify.report.page import _packed_plotly

    _packed_plotly.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnitifyError, match="U005"):
        format_of(None, format)  # before any work
    with pytest.raises(UnitifyError, match=f"pip install {package}$") as caught:
        residual_report().rendered(format)
    assert caught.value.code == "U005"
    if package == "matplotlib":
        assert "<img" not in residual_report()._repr_html_()


def test_a_page_is_written_with_its_json(tmp_path: Path) -> None:
    report = residual_report()
    for _ in range(2):  # a second time it replaces both
        files = report.save(tmp_path / "report.html")
        assert files == (tmp_path / "report.html", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report.as_json()


def test_another_file_beside_is_not_replaced(tmp_path: Path) -> None:
    """A converted folder holds a report.json of its own."""
    (tmp_path / "report.json").write_text('{"model": "mine"}')
    with pytest.raises(UnitifyError) as caught:
        residual_report().save(tmp_path / "report.html")
    assert caught.value.code == "U605"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_a_format_that_there_is_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnitifyError) as caught:
        residual_report().save(tmp_path / name)
    assert caught.value.code == "U001"
