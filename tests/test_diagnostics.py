"""Every diagnostic has a code, a text, a page, and something that triggers it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import capture_triggers  # noqa: F401
import file_triggers  # noqa: F401
import plan_triggers  # noqa: F401
import pytest
from triggers import TRIGGERS

import unitify
import unitify.diagnostics
from unitify.diagnostics import Diagnostic, UnitifyError, all_diagnostics
from unitify.diagnostics.__main__ import page

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("code", TRIGGERS)
def test_it_is_triggered(code: str, tmp_path: Path) -> None:
    try:
        found = TRIGGERS[code](tmp_path)
    except UnitifyError as error:
        found = list(error.diagnostics)
    assert code in {d.code for d in found or []}
    for diagnostic in found or []:
        assert len(str(diagnostic).splitlines()) == 1
        assert diagnostic.as_json()["code"] == diagnostic.code


def test_every_code_has_a_trigger() -> None:
    assert set(all_diagnostics()) == TRIGGERS.keys()


def test_codes_are_unique_and_in_their_stage() -> None:
    classes = [
        c for c in Diagnostic.__subclasses__() if c.__module__.startswith("unitify.diagnostics.")
    ]
    codes = [c.code for c in classes]
    assert sorted(codes) == sorted(set(codes))
    assert {c.code: c for c in classes} == all_diagnostics()
    stages = {c.code[:2]: set() for c in classes}
    for c in classes:
        assert re.fullmatch(r"U\d{3}", c.code)
        stages[c.code[:2]].add(c.__module__)
    assert all(len(modules) == 1 for modules in stages.values()), stages


@pytest.mark.parametrize("found", all_diagnostics().values(), ids=lambda c: c.code)
def test_it_is_documented(found: type[Diagnostic]) -> None:
    text = inspect.getdoc(found) or ""
    what, example, fix = re.split(r"^(?:Example|Fix): ", text, flags=re.MULTILINE)
    assert len(what) > 20
    assert len(example) > 10
    assert len(fix) > 10
    assert getattr(unitify.diagnostics, found.__name__) is found
    fields = set(inspect.signature(found).parameters)
    for template in (found.why, found.fix):
        assert set(re.findall(r"{(\w+)", template)) <= fields
        assert not template.endswith(".")


def test_the_page_is_written_anew() -> None:
    written = (ROOT / "docs" / "codes.md").read_text("utf-8")
    assert written == page(), "run `make docs`"
