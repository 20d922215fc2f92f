"""The layout of a report's JSON is the one that is documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import residual_report

SIDE = {
    "predicted": 0.5, "measured": 0.5, "exponent": 1, "cast": "", "octaves": None,
    "losses": {}, "steps": [], "is_rounding": False,
}  # fmt: skip


#: The layout of a report's JSON, schema 1: every key that it has, and none else.
LAYOUT: dict[str, Any] = {
    "kind": "", "schema": 1, "versions": {}, "model": "", "target": "", "scales": "",
    "recipe": ["name", "forward", "backward", "values", "table"], "recipe_is_applied": True,
    "placement": "", "carrier": "", "batches": 1, "exact_before_casts": True, "parameters": 1,
    "formats": {},
    "unit": ["forward", "backward"],
    "true_weights": ["forward", "backward"], "cast_share_of_flops": 1.0,
    "values": [], "choices": [], "sources": [], "rules": {},
    "classes": [], "rescales": [],
    "findings": [], "notes": [], "check": ["original", "transformed"], "drift": None,
}  # fmt: skip


VALUE = [
    "name", "kind", "is_true_weight", "operation", "shape", "module", "class", "parameter",
    "source", "restored", "forward", "backward", "sqnr", "contraction",
]  # fmt: skip


CHOICE = [
    "value", "operation", "forward", "backward", "reason", "is_operand", "is_contraction", "flops",
    "runs", "runs_because",
]  # fmt: skip


CHECK = ["judged", "judged_by", "counts", "notes", "findings", "starts"]


FINDING = [
    "code", "severity", "name", "value", "direction", "why", "fix", "file", "line", "source",
    "cause",
]  # fmt: skip


def test_the_layout_of_the_json_is_fixed() -> None:
    text = residual_report().rendered("json").decode()
    held = json.loads(text, parse_constant=pytest.fail)
    assert (held["kind"], held["schema"]) == ("unitify-report", 1)
    assert list(held) == list(LAYOUT)
    assert list(held["recipe"]) == LAYOUT["recipe"]
    assert list(held["unit"]) == LAYOUT["unit"]
    assert list(held["true_weights"]) == LAYOUT["true_weights"]
    for value in held["values"]:
        assert list(value) == VALUE
        assert list(value["forward"]) == list(value["backward"]) == list(SIDE)
        assert value["source"] is None or value["source"] < len(held["sources"])
        for name in value["forward"]["losses"].get("original", {}):
            assert name in held["formats"]
    names = {value["name"] for value in held["values"]}
    for choice in held["choices"]:
        assert list(choice) == CHOICE
        assert choice["value"] in names
    assert list(held["check"]) == LAYOUT["check"]
    for checked in held["check"].values():
        assert list(checked) == CHECK
        assert all(list(finding) == FINDING for finding in checked["findings"])
    for source in held["sources"]:
        assert list(source) == ["file", "shown", "line", "first", "excerpt"]
    assert held == residual_report().as_json() == json.loads(json.dumps(held))


def test_the_documentation_names_the_layout() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "report.md").read_text("utf-8")
    for key in (*LAYOUT, *VALUE, *SIDE, *CHECK, *FINDING):
        assert f"`{key}`" in text
