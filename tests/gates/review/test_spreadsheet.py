"""A reviewer's list through a spreadsheet and back."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.sessions import Session, Texts
from lora_ops.gates.review.spreadsheet import COLUMNS, read_table, write_table
from lora_ops.records.review import Judgement
from lora_ops.registry.store import Registry

Rows = list[dict[str, str]]
HOSTILE = {
    "=cmd|' /C calc'!A0": "+1",
    '-2\n=HYPERLINK("x")': "@SUM(A1)",
    "'quoted'; \"twice\"": "\uff1dcmd",
    "two\r\nlines\x07": "",
}


@pytest.fixture
def desk(registry: Registry, session: Session) -> Desk:
    """Ben's list, whose first texts are hostile."""
    found = Desk(registry, session, "ben", registry.clock)
    for task, (text, answer) in zip(found._tasks, HOSTILE.items(), strict=False):
        found._texts[task.row] = Texts(text, answer, f"{answer} other", "g")
    return found


@pytest.fixture
def edit(desk: Desk, tmp_path: Path) -> Callable[..., Path]:
    """Export the list, change its rows, and save them as a spreadsheet would."""

    def edited(change: Callable[[Rows], Rows], encoding: str = "utf-8-sig", **form: str) -> Path:
        path = tmp_path / "votes.csv"
        path.unlink(missing_ok=True)
        write_table(desk, path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = change(list(csv.DictReader(file)))
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, **form)  # type: ignore[arg-type]
            writer.writeheader()
            writer.writerows(rows)
        return path

    return edited


def vote(rows: Rows, **more: str) -> Rows:
    return [{**row, "vote": "left", **more} for row in rows]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ends", ["\r\n", "\n"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8", "utf-16"])
def test_a_table_comes_back_however_it_is_saved(
    desk: Desk, edit: Callable[..., Path], delimiter: str, ends: str, encoding: str
) -> None:
    path = edit(lambda rows: vote(rows)[::-1], encoding, delimiter=delimiter, lineterminator=ends)
    assert read_table(desk, path) == desk.total == desk.judged
    assert read_table(desk, path) == 0  # nothing is new the second time


def test_no_cell_is_a_formula(desk: Desk, tmp_path: Path) -> None:
    desk.say(1, Judgement(vote="left", comment="=1+1", corrected="-5", breach={"right": "@x"}))
    path = tmp_path / "votes.csv"
    write_table(desk, path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))]
    assert read_table(desk, path) == 0
    assert desk.said(1).comment == "=1+1" and desk.said(1).corrected == "-5"


def test_missing_and_open_rows_stay_open(desk: Desk, edit: Callable[..., Path]) -> None:
    path = edit(lambda rows: [*vote(rows[:3], accuracy_left="4", trust_right="1.0"), *rows[5:]])
    assert read_table(desk, path) == 3 == desk.judged
    assert desk.said(1).ratings == {"left": {"accuracy": 4}, "right": {"trust": 1}}


def test_a_changed_mind_is_taken(desk: Desk, edit: Callable[..., Path]) -> None:
    read_table(desk, edit(vote))
    path = edit(lambda rows: [{**rows[0], "vote": " Same ", "breach_left": "advice"}, *rows[1:]])
    assert read_table(desk, path) == 1
    assert desk.said(1).vote == "same" and desk.said(1).breach == {"left": "advice"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: [{**rows[4], "left": "better"}], "the column 'left' of pair 5 was edited"),
        (lambda rows: [{**rows[4], "text": rows[5]["text"]}], "the column 'text' of pair 5 was edited"),
        (lambda rows: vote([rows[0], rows[0]]), "pair 1 is in the table twice, and each pair counts once"),
        (lambda rows: [{**rows[0], "pair": "999"}], "the list of ben has no pair '999'"),
        (lambda rows: [{**rows[0], "pair": "one"}], "has no pair 'one'"),
        (lambda rows: [{**rows[0], "vote": "adapter"}], "vote: Input should be 'left'"),
        (lambda rows: vote(rows, trust_left="6"), "trust_left is '6': a rating is a whole number from 1 to 5"),
        (lambda rows: [{**rows[0], "comment": "hm"}], "pair 1 has ratings or a comment, and no vote"),
        (lambda rows: vote(rows, comment="x" * 20_001), "comment: String should have at most 20000"),
    ],
)
def test_a_wrong_table_is_refused_whole(
    desk: Desk, edit: Callable[..., Path], change: Callable[[Rows], Rows], problem: str
) -> None:
    path = edit(lambda rows: [*vote(rows[6:9]), *change(rows)])
    with pytest.raises(LoraOpsError, match=problem):
        read_table(desk, path)
    assert desk.judged == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no table of `lora-ops review export`"),
        (b"pair,vote\n1,left\n", "is no table of `lora-ops review export`"),
        ("Größe".encode("latin-1"), r"is not UTF-8 \(byte 2\): save it as 'CSV UTF-8'"),
        (b"\x00\x01PK", "is no table"),
        ((",".join(COLUMNS) + "\n1,2\n").encode(), "line 2 has 2 cells, not 21 as the header has"),
        ((",".join(COLUMNS) + ",vote\n").encode(), "has a column twice"),
    ],
)
def test_what_is_no_table_is_refused(desk: Desk, tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "votes.csv"
    path.write_bytes(content)
    with pytest.raises(LoraOpsError, match=problem):
        read_table(desk, path)


def test_export_writes_over_nothing(desk: Desk, tmp_path: Path) -> None:
    write_table(desk, tmp_path / "votes.csv")
    with pytest.raises(LoraOpsError, match=r"votes.csv exists already: name a new file"):
        write_table(desk, tmp_path / "votes.csv")
