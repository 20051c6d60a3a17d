"""Tables in narrow terminals: every number stays whole."""

import io
import re

import pytest

from lora_ops.escaping import console
from lora_ops.grid import Grid

COLUMNS = ("version", "value", "95 % interval", "note")


def rendered(table: Grid, width: int) -> str:
    out = io.StringIO()
    console(file=out, width=width).print(table)
    return out.getvalue()


@pytest.fixture
def table() -> Grid:
    grid = Grid(*COLUMNS, solid={*COLUMNS[:3]}, title="300 rows")
    grid.add_row(
        "healthcare-of-the-north@12", "0.938", "0.911 to 0.988", "one note of 27 words, long enough to wrap"
    )
    grid.add_section()
    grid.add_row("", "1234567.891", "", "x" * 70 + "42")
    return grid


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
def test_a_grid_cuts_no_number(table: Grid, width: int) -> None:
    page = rendered(table, width)
    assert max(len(line.rstrip()) for line in page.splitlines()) <= width
    for number in re.findall(r"\d[\d.]*", rendered(table, 1000)):
        if number != "42":  # the end of one word that is wider than the window
            assert number in page
    assert "42" in page.replace("\n", "").replace(" ", "")


def test_a_grid_writes_rows_one_below_the_other_where_it_must(table: Grid) -> None:
    lines = [line.split() for line in rendered(table, 40).splitlines() if line.strip()]
    assert ["value", "0.938"] in lines and ["value", "1234567.891"] in lines
    assert lines[0] == ["300", "rows"]


def test_a_grid_shows_markup_as_it_is() -> None:
    grid = Grid("a", "[b]", solid=set(), title="AIRBNB [/b]")
    grid.add_row("[red]x", ":cow:")
    for width in (14, 80):
        page = rendered(grid, width)
        assert all(text in page for text in ("[/b]", "[red]x", ":cow:"))
