"""A table for the terminal in which no number is ever cut, however narrow the window is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lora_ops.escaping import cell

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

# A column of text may become this narrow before the rows are written one below the other.
NARROWEST_TEXT = 16


class Grid:
    """Rows under column names; where they don't fit beside each other, one `name value` line for each cell.

    A solid column (numbers, dates, versions) keeps its width. The others wrap, and lose nothing either.
    """

    def __init__(self, *columns: str, solid: frozenset[str] | set[str], title: str | None = None) -> None:
        self._columns = columns
        self._solid = solid
        self._title = title
        self._rows: list[tuple[list[Text], str | None]] = []
        self._sections: set[int] = set()  # a line follows these rows

    def add_row(self, *cells: str | Text | None, style: str | None = None) -> None:
        """Add a row; a string is text of data and shown as it is."""
        self._rows.append(([one if isinstance(one, Text) else cell(one or "") for one in cells], style))

    def add_section(self) -> None:
        """Draw a line below the last row."""
        self._sections.add(len(self._rows) - 1)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Render as a table, or as lines where the window is too narrow for it."""
        least = console.measure(self._narrowest(), options=options.update(width=10_000)).maximum
        if least <= options.max_width:
            yield self._table()
        else:
            yield from self._lines()

    def _table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=cell(self._title) if self._title else None)
        for name in self._columns:
            table.add_column(cell(name), overflow="fold", no_wrap=name in self._solid)
        for place, (cells, style) in enumerate(self._rows):
            table.add_row(*cells, style=style, end_section=place in self._sections)
        return table

    def _narrowest(self) -> Table:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(self._columns):
            words = [word for cells, _ in self._rows for word in _words(cells[place], name in self._solid)]
            words += [name] if name in self._solid else name.split()
            longest = max((cell_len(word) for word in words), default=0)
            table.add_column("x" * (longest if name in self._solid else min(longest, NARROWEST_TEXT)))
        return table

    def _lines(self) -> "Iterator[RenderableType]":
        if self._title:
            yield cell(self._title)
        for cells, style in self._rows:
            lines = Table(box=None, show_header=False, pad_edge=False)
            lines.add_column(style="dim", no_wrap=True)
            lines.add_column(overflow="fold")
            for name, one in zip(self._columns, cells, strict=True):
                if one.plain:
                    lines.add_row(cell(name), one, style=style)
            yield Text("") if cells[0].plain else lines
            if cells[0].plain:
                yield lines


def _words(text: Text, solid: bool) -> list[str]:
    return text.plain.splitlines() if solid else text.plain.split()
