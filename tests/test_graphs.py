"""Graphs of five small models, captured, planned and emitted, are as the docs show them."""

from __future__ import annotations

from pathlib import Path

from graphs import page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "graphs.md"


def test_graphs_are_those_of_the_docs() -> None:
    assert page() == PAGE.read_text("utf-8"), "python tests/graphs.py > docs/graphs.md writes it"
