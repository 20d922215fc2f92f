"""The console of every command: on a narrow terminal a wide table becomes a list of records."""

from __future__ import annotations

import sys

from rich.console import Console, ConsoleRenderable, Group, RenderableType, RenderHook
from rich.table import Table
from rich.text import Text

#: A table of more than two columns needs so many characters a line.
WIDTH = 100


def open_console() -> Console:
    """A console for the output of a command, on the present stdout."""
    made = Console(file=sys.stdout, emoji=False)
    if made.width < WIDTH:
        made.push_render_hook(_Records())
    return made


class _Records(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Group(*map(_narrow, renderables))]


def _narrow(renderable: RenderableType) -> RenderableType:
    if isinstance(renderable, Group):
        return Group(*map(_narrow, renderable.renderables))
    if isinstance(renderable, Table) and len(renderable.columns) > 2:
        return records(renderable)
    return renderable


def records(table: Table) -> Group:
    """A record for each row: its first cell, and a line for each other column."""
    headers = [column.header for column in table.columns[1:]]
    found: list[RenderableType] = [table.title] if table.title else []
    for first, *cells in zip(*(column.cells for column in table.columns), strict=True):
        record = Table.grid(padding=(0, 2))
        record.add_column(style="bold")
        record.add_column(overflow="fold")
        for header, cell in zip(headers, cells, strict=True):
            if str(cell):
                record.add_row(Text(f"  {header}"), cell)
        found += [first, record]
    return Group(*found)
