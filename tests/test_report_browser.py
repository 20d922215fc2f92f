"""The page of a report in a real browser: what it shows, and what a user does with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Page, chromium
from test_report import batch, many, residual, residual_report, trained

import unitify
from unitify.report.model_report import ModelReport

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def page(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    trained(folder / "drift.jsonl")
    report = residual()[1].report([(batch(),)], drift=folder / "drift.jsonl")
    report.save(folder / "report.html")
    return Page(driver, folder / "report.html")


SECTIONS = (
    "verdict", "scales", "exponents", "losses", "agreement", "noise", "values", "classes", "casts",
    "drift", "findings",
)  # fmt: skip


def test_every_view_is_drawn_without_an_error_or_a_request(page: Page) -> None:
    for section in SECTIONS:
        page.see(section)
        assert page.js(f"document.querySelector('#{section} .body').textContent.length > 0")
    figures = page.js("[...document.querySelectorAll('.js-plotly-plot')].map(f => f.id)")
    assert figures == [f"{s}-figure" for s in SECTIONS if s in (
        "scales", "exponents", "agreement", "noise", "drift",
    )]  # fmt: skip
    assert page.console() == []
    requests = [url for url in page.requests() if not url.startswith(("data:", "blob:"))]
    assert [url.partition("#")[0] for url in requests] == [
        page.driver.current_url.partition("#")[0]
    ]


def test_names_are_text(page: Page) -> None:
    assert page.js("document.querySelectorAll('img, [onerror]').length") == 0
    assert page.js("typeof boom") == "undefined"
    shown = page.js("document.querySelector('#values tbody').innerText")
    assert "branch.<img src=x onerror=boom()>.weight" in shown
    assert "branch.</script>" in shown


def rows(page: Page, section: str, column: int) -> list[str]:
    cells = f"#{section} tbody tr:not(.spacer) td:nth-child({column})"
    return list(page.js(f"[...document.querySelectorAll('{cells}')].map(c => c.textContent)"))


def test_tables_sort(page: Page) -> None:
    page.see("values")
    heads = page.all("#values thead tr:last-child button")
    true = next(i for i, head in enumerate(heads) if head.text == "true")
    for expected, is_reversed in (("descending", True), ("ascending", False)):
        page.click(heads[true])
        found = [
            float(c.replace("\u2212", "-")) for c in rows(page, "values", true + 1) if c != "–"
        ]
        assert found == sorted(found, reverse=is_reversed)
        assert heads[true].find_element("xpath", "..").get_attribute("aria-sort") == expected
    assert len(found) > 5


def test_tables_filter(page: Page) -> None:
    page.see("values")
    field = page.find("#values input[type=search]")
    field.send_keys("gelu")
    assert rows(page, "values", 1) == ["gelu"]
    assert page.find("#values .note[role=status]").text.startswith("1 of ")
    field.clear()
    field.send_keys(" ")
    field.send_keys("\b")
    restored = page.all("#values .switch")[1]
    page.click(restored)
    assert sorted(rows(page, "values", 1)) == ["gelu", "special_bessel_j0"]
    page.click(restored)


def test_modules_fold_and_unfold_all_figures(page: Page) -> None:
    page.see("scales")

    def slots() -> int:
        return int(page.find("#scales .note").text.split(" ")[0])

    total = len(residual_report().numerics.values)
    assert slots() == total
    page.click(page.find("#scales .buttons button"))
    page.until("document.querySelector('#scales .note').textContent.includes('folded')")
    folded = slots()
    assert folded < total
    page.see("exponents")
    page.until(f"document.getElementById('exponents-figure').data[0].x.length === {folded}")
    page.js("document.querySelector('#scales .outline li').focus()")
    page.press("\ue014")  # arrow right
    page.until(f"parseInt(document.querySelector('#scales .note').textContent) > {folded}")
    assert page.js("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.click(page.all("#scales .buttons button")[-1])
    page.until(f"document.querySelector('#scales .note').textContent.startsWith('{total} slots')")


def test_a_link_leads_to_source_derivation_and_rule(page: Page) -> None:
    page.see("values")
    link = page.find("#values tbody a[href='#value=gelu']")
    page.click(link)
    panel = page.find("#details")
    page.until("!document.getElementById('details').hidden")
    assert page.driver.current_url.endswith("#value=gelu")
    text = panel.text
    assert "aten.gelu.default" in text
    assert "test_report.py" in text
    assert "gelu(up(x))" in page.find("#details .line.here").text
    assert "quadrature" in text
    page.click(page.find("#details a[href='#value=linear']"))
    page.until("document.getElementById('details-title').textContent === 'linear'")
    page.press("\ue00c")  # escape
    page.until("document.getElementById('details').hidden")


def test_the_keyboard_moves_through_a_table(page: Page) -> None:
    page.see("losses")
    page.js("document.querySelector('#losses .scroller').focus()")
    page.press("\ue015", "\ue015")  # arrow down, twice
    names = rows(page, "losses", 1)
    assert page.find("#losses tr.active td").text == names[2]
    page.press("\ue007")  # enter
    page.until("!document.getElementById('details').hidden")
    page.press("\ue00c")
    page.until("document.getElementById('details').hidden")


def test_light_and_dark(page: Page) -> None:
    page.see("scales")

    def looks() -> tuple[str, str]:
        paper = page.js("getComputedStyle(document.body).backgroundColor")
        return paper, page.js("document.getElementById('scales-figure').layout.font.color")

    before = looks()
    page.click(page.find("#theme"))
    page.until(f"getComputedStyle(document.body).backgroundColor !== '{before[0]}'")
    page.until(f"document.getElementById('scales-figure').layout.font.color !== '{before[1]}'")
    page.click(page.find("#theme"))
    page.until(f"document.getElementById('scales-figure').layout.font.color === '{before[1]}'")


def test_the_verdict_names_lines_and_marks_what_is_rounding(page: Page) -> None:
    shown = page.find("#verdict").text
    first = page.js("document.querySelector('main section').id")
    assert first == "verdict"
    for finding in residual_report().as_json()["check"]["original"]["findings"]:
        if not finding["cause"] and finding["severity"] != "note":
            assert f"{finding['file']}:{finding['line']}" in shown


def test_a_phone_cuts_nothing(page: Page) -> None:
    """Nothing is wider than the window but what scrolls, and every table does."""
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        assert page.js("document.documentElement.scrollWidth") <= 390
        for link in page.all("nav a"):
            assert 0 <= link.rect["x"] <= 390 - link.rect["width"]
        assert page.js("getComputedStyle(document.querySelector('.bar')).position") == "static"
        for hidden in (".modebar", "#values td.wide-only"):
            assert (
                page.js(f"getComputedStyle(document.querySelector('{hidden}')).display") == "none"
            )
        tables = "[...document.querySelectorAll('main table')]"
        assert page.js(f"{tables}.every(table => table.closest('.scroller, .wide'))")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_paper_has_all_of_it(page: Page) -> None:
    figures = "[...document.querySelectorAll('.figure')]"
    page.until(f"{figures}.every(figure => figure._fullLayout)")
    page.js("document.documentElement.dataset.theme = 'dark'")
    page.js("dispatchEvent(new Event('beforeprint'))")
    widths = page.js(f"{figures}.map(figure => figure._fullLayout.width)")
    assert max(widths) < 700
    assert len(rows(page, "values", 1)) == len(residual_report().numerics.values)
    assert page.js("document.querySelector('main details:not([open])')") is None
    assert page.js("document.documentElement.dataset.theme") == "light"
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js("document.documentElement.dataset.theme") == "dark"
    assert page.js("document.querySelector('main details:not([open])')") is not None
    page.js("delete document.documentElement.dataset.theme")


def test_six_thousand_values_do_not_freeze_it(driver: Any, tmp_path: Path) -> None:
    """Whatever the size, the page holds a bounded number of rows and of marks."""
    ModelReport(many(6_000)).save(tmp_path / "large.html")
    page = Page(driver, tmp_path / "large.html")
    page.see("scales")
    assert page.find("#scales .note").text.startswith("1 slot")
    page.click(page.all("#scales .buttons button")[-1])
    page.until("document.querySelector('#scales .note').textContent.startsWith('6,000 slots')")
    marks = page.js("document.getElementById('scales-figure').data.map(t => t.x.length)")
    assert max(marks) <= 3 * 360
    for section in ("exponents", "losses", "agreement", "noise", "values"):
        page.see(section)
    assert page.js("document.querySelectorAll('#values tbody tr').length") < 60
    page.js("document.querySelector('#values .scroller').focus()")
    page.press("\ue010")  # end
    page.until(
        "document.querySelector('#values tr.active')?.getAttribute('aria-rowindex') === '6001'"
    )
    assert page.console() == []


def test_what_is_stored_near_unit_rms_has_classes(driver: Any, tmp_path: Path) -> None:
    """A recipe that casts stored values: rescales between classes, and no signal to noise."""
    module = unitify.transform(residual()[0], (batch(),), recipe="fp16")
    module.report([(batch(),)]).save(tmp_path / "report.html")
    page = Page(driver, tmp_path / "report.html")
    page.see("classes")
    assert page.js("document.getElementById('classes-figure').data[2].x.length") > 1
    assert page.js("getComputedStyle(document.getElementById('noise')).display") == "none"
    assert "Signal to noise is not shown" in page.find("#findings").text
    assert "every value to FP16" in page.find("#casts").text
    assert page.console() == []
