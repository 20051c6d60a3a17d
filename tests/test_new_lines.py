"""Lines are read once, and what was given is at any time what a reader of all lines finds."""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.line_files import read_line_files
from lora_ops.new_lines import REMEMBERED_SECONDS, NewLines
from lora_ops.records.record import Record

MORNING = datetime(2026, 3, 2, 9, tzinfo=UTC)
START = MORNING.timestamp()


class Said(Record):
    """A line of these tests."""

    id: str
    time: datetime
    request_id: str = ""
    who: str
    value: float | None = None


def line(number: int, *, seconds: float | None = None, **changes: Any) -> str:
    at = MORNING + timedelta(seconds=number if seconds is None else seconds)
    return (
        json.dumps({"id": f"i{number}", "time": at.isoformat(), "who": "a", "value": number, **changes}) + "\n"
    )


def reader(folder: Path) -> NewLines:
    return NewLines(folder, "said", Said, "who IN ('a', 'b')", ("who", "value"))


def given(lines: NewLines, seconds: float) -> tuple[bool, list[float]]:
    reading = lines.read(START + seconds)
    return reading.is_anew, [row[3] for row in reading.rows]


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_pipe_in_the_folder_is_no_file_of_lines(tmp_path: Path) -> None:
    """Nobody writes into it: whoever opened it would wait for ever, and a rollout could not go back."""
    os.mkfifo(tmp_path / "said-0.jsonl")
    assert read_line_files(tmp_path, "said", Said).empty
    append(tmp_path / "said-1.jsonl", line(1))
    assert list(read_line_files(tmp_path, "said", Said)["value"]) == [1]
    assert given(reader(tmp_path), 10) == (True, [1])


def test_lines_are_given_once_in_order(tmp_path: Path) -> None:
    lines, first, second = reader(tmp_path), tmp_path / "said-1.jsonl", tmp_path / "said-2.jsonl"
    assert given(lines, 0) == (True, [])
    append(first, line(5) + line(3) + line(90))
    append(second, line(4) + line(6, who="c"))
    assert given(lines, 10) == (False, [3, 4, 5])
    assert given(lines, 20) == (False, [])
    append(second, line(22))
    append(tmp_path / "said-3.jsonl", line(21) + line(95))
    assert given(lines, 92) == (False, [21, 22, 90])
    assert given(lines, 100) == (False, [95])
    assert given(reader(tmp_path), 100) == (True, [3, 4, 5, 21, 22, 90, 95])


def test_only_new_bytes_are_read(tmp_path: Path) -> None:
    """A byte that is changed in the middle shows what is read: nobody reads it again."""
    lines, path = reader(tmp_path), tmp_path / "said-1.jsonl"
    append(path, "".join(line(number) for number in range(500)))
    assert len(given(lines, 1000)[1]) == 500
    text = path.read_text()
    middle = text.index('"i250"')
    with path.open("r+") as file:
        file.seek(middle)
        file.write('"x250"')
    append(path, line(1001))
    assert given(lines, 1100) == (False, [1001])


def test_torn_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    lines, path, whole = reader(tmp_path), tmp_path / "said-1.jsonl", line(2)
    for cut in (len(whole) // 2, len(whole) - 1):
        path.write_text(line(1) + whole[:cut])
        lines = reader(tmp_path)
        before = given(lines, 1.5)[1]
        append(path, whole[cut:] + line(3))
        assert [*before, *given(lines, 5)[1]] == [1, 2, 3]


def test_line_without_its_end_is_read_as_by_all_readers(tmp_path: Path) -> None:
    lines, path = reader(tmp_path), tmp_path / "said-1.jsonl"
    append(path, line(1))
    assert given(lines, 1) == (True, [1])
    append(path, line(2).rstrip("\n"))
    assert given(lines, 3) == (False, [2])
    assert list(read_line_files(tmp_path, "said", Said)["value"]) == [1, 2]
    append(path, "\n" + line(4))
    assert given(lines, 5) == (False, [4])


def emptied(path: Path) -> None:
    path.write_text("")


def rewritten(path: Path) -> None:
    """With the same length and the same inode."""
    text = path.read_text()
    path.write_text(text.replace('"i1"', '"x1"'))
    os.utime(path, (START, START))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(line(7) + path.read_text())
    other.replace(path)


def grown_from_other_lines(path: Path) -> None:
    path.write_text("".join(line(number) for number in (7, 1, 2, 8)))


@pytest.mark.parametrize("change", [Path.unlink, emptied, rewritten, replaced, grown_from_other_lines])
def test_lines_that_are_gone_make_it_begin_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    lines = reader(tmp_path)
    append(tmp_path / "said-1.jsonl", line(1) + line(2))
    append(tmp_path / "said-2.jsonl", line(3))
    assert given(lines, 9) == (True, [1, 2, 3])
    change(tmp_path / "said-1.jsonl")
    assert given(lines, 10) == given(reader(tmp_path), 10)
    append(tmp_path / "said-2.jsonl", line(11))
    assert given(lines, 12) == (False, [11])


def test_files_without_wanted_lines_may_go(tmp_path: Path) -> None:
    lines, old = reader(tmp_path), tmp_path / "said-1.jsonl"
    append(old, line(1, who="c"))
    append(tmp_path / "said-2.jsonl", line(2))
    assert given(lines, 9) == (True, [2])
    old.unlink()
    assert given(lines, 10) == (False, [])


@pytest.mark.parametrize("late", [4, 9])
def test_line_that_comes_late_makes_it_begin_again(tmp_path: Path, late: int) -> None:
    lines, path = reader(tmp_path), tmp_path / "said-1.jsonl"
    append(path, line(1) + line(8))
    assert given(lines, 9) == (True, [1, 8])
    append(path, line(late, who="b"))
    assert given(lines, 10) == (True, sorted([1, 8, late]))


def test_clock_set_back_makes_it_begin_again(tmp_path: Path) -> None:
    lines = reader(tmp_path)
    append(tmp_path / "said-1.jsonl", line(1) + line(8))
    assert given(lines, 9) == (True, [1, 8])
    assert given(lines, 5) == (True, [1])
    assert given(lines, 9) == (False, [8])


def test_line_that_was_written_twice_is_given_once(tmp_path: Path) -> None:
    """At once, in the next moment, and after its id is forgotten."""
    lines, later = reader(tmp_path), 3 * REMEMBERED_SECONDS
    append(tmp_path / "said-1.jsonl", line(1) + line(2))
    append(tmp_path / "said-2.jsonl", line(1))
    assert given(lines, 9) == (True, [1, 2])
    append(tmp_path / "said-3.jsonl", line(2) + line(12))
    assert given(lines, 15) == (False, [12])
    append(tmp_path / "said-3.jsonl", line(99, seconds=later))
    assert given(lines, later) == (False, [99])
    append(tmp_path / "said-4.jsonl", line(2))
    assert given(lines, later) == (True, [1, 2, 12, 99])


WRONG = (
    "\n",
    "[1]\n",
    '"text"\n',
    '{"id": "torn", "time": "2026-03\n',
    '{"id": "a"} {"id": "b"}\n',
    "\x00\x00\n",
    line(5, time="infinity"),
    line(5, time=12),
    line(5, value="NaN"),
    line(5, value="1e3"),
    line(5, value=10**400),
    line(5, value="x", id=None),
    line(5, value=[1], who={"a": 1}),
    line(5, who="\ud800"),
    line(5, time="2026-03-02T10:00:05+01:00"),
    line(5, time="2026-03-02 09:00:05"),
    line(5, unknown=3, value=True),
)


def test_appended_lines_are_read_as_those_of_files(tmp_path: Path) -> None:
    """By other code of DuckDB: each says the same of what no gateway wrote."""
    lines, path = reader(tmp_path), tmp_path / "said-1.jsonl"
    append(path, line(1))
    assert given(lines, 1) == (True, [1])
    append(path, "".join(text.replace("i5", f"w{number:02}") for number, text in enumerate(WRONG)))
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n" + line(7).encode())
    gone_on, begun = given(lines, 9)[1], given(reader(tmp_path), 9)[1]
    assert repr([1.0, *gone_on]) == repr(begun) and len(begun) > 5


def test_files_need_no_folder_and_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "a [1]*? b"
    lines = reader(folder)
    assert given(lines, 1) == (True, [])
    folder.mkdir()
    append(folder / "said-[x].jsonl", line(2))
    append(folder / "said-*.jsonl", line(3))
    assert given(lines, 5) == (False, [2, 3])
    append(folder / "said-[x].jsonl", line(6))
    assert given(lines, 9) == (False, [6])


def test_file_that_grew_by_much_is_read_as_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, path, other = reader(tmp_path), tmp_path / "said-1.jsonl", tmp_path / "said-2.jsonl"
    append(path, line(1))
    append(other, line(1, who="c"))
    assert given(lines, 1) == (True, [1])
    monkeypatch.setattr("lora_ops.new_lines.APPENDED_BYTES", 100)
    append(other, line(2, who="c") + line(3))
    assert given(lines, 4) == (False, [3])
    append(path, line(5) + line(6))
    assert given(lines, 9) == (True, [1, 3, 5, 6])


def test_unreadable_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "said-1.jsonl").mkdir()
    with pytest.raises(LoraOpsError, match="The said can't be read"):
        reader(tmp_path).read(START)
