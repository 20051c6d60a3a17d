"""A reviewer's file: chained, resumable after a kill, and found out where somebody edits it."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.gates.review.annotations import begin, read, record
from lora_ops.records.review import Judgement

HEADING = {"plan_sha256": "a" * 64, "adapter": "finance@1", "content_digest": "b" * 64, "reviewer": "ben"}
AT = datetime(2026, 3, 2, 9, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with three votes, the first of which was changed once."""
    file = tmp_path / "votes" / "ben.jsonl"
    begin(file, HEADING, AT)
    first = record(file, 1, Judgement(vote="left"), AT, seen=None)
    record(file, 2, Judgement(vote="right", comment="Größe <b>"), AT, seen=None)
    record(file, 3, Judgement(vote="same"), AT, seen=None)
    record(file, 1, Judgement(vote="same", ratings={"left": {"trust": 4}}), AT, seen=first.digest)
    return file


def test_read_takes_the_last_word_on_each_pair(path: Path) -> None:
    votes = read(path)
    assert {task: line.said.vote for task, line in votes.judged.items()} == {1: "same", 2: "right", 3: "same"}
    assert votes.last[1].said.ratings == {"left": {"trust": 4}} and votes.last[2].said.comment == "Größe <b>"
    assert votes.dropped == 0 and len(path.read_bytes().splitlines()) == 5


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [(1, "finance@1", "finance@2"), (2, '"left"', '"right"'), (3, "<b>", "<c>"), (5, '"same"', '"left"')],
)
def test_read_names_the_line_that_was_edited(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("".join(lines))
    with pytest.raises(Damaged, match=f"ben.jsonl, line {line} was edited by hand: its digest does not fit"):
        read(path)


@pytest.mark.parametrize("how", ["taken out", "moved", "twice"])
def test_read_names_the_line_that_does_not_follow(path: Path, how: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    place = {"taken out": 3, "moved": 3, "twice": 4}[how]
    if how == "taken out":
        del lines[2]
    elif how == "moved":
        lines[2], lines[3] = lines[3], lines[2]
    else:
        lines.insert(3, lines[2])
    path.write_text("".join(lines))
    with pytest.raises(Damaged, match=f"line {place} does not follow line {place - 1}"):
        read(path)


@pytest.mark.parametrize("text", ["", "\n", "garbage\n", '{"a": 1, "a": 2}\n', "[[[[\n", "\x00\x01\n"])
def test_read_refuses_what_is_no_file_of_votes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ben.jsonl"
    path.write_text(text)
    with pytest.raises(Damaged, match=r"ben.jsonl(, line 1 is not what|has no whole line| has no whole line)"):
        read(path)


def test_record_refuses_a_second_vote_on_a_pair(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Refused, match="Pair 2 was judged already, and counts once"):
        record(path, 2, Judgement(vote="left"), AT, seen=None)
    assert path.read_bytes() == before


def test_begin_refuses_another_plan_and_another_reviewer(path: Path) -> None:
    for name, value in (("plan_sha256", "c" * 64), ("reviewer", "chen"), ("adapter", "finance@2")):
        with pytest.raises(Refused, match="is about another"):
            begin(path, {**HEADING, name: value}, AT)


def test_half_a_last_line_is_dropped_and_written_over(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task":4,"said":{"vo')
    votes = begin(path, HEADING, AT)
    assert votes.dropped == 21 and len(votes.judged) == 3
    record(path, 4, Judgement(vote="left"), AT, seen=None)
    assert read(path).dropped == 0 and path.read_bytes().startswith(whole) and len(read(path).judged) == 4


def test_half_a_first_line_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "ben.jsonl"
    path.write_bytes(b'{"plan_sha')
    assert begin(path, HEADING, AT).heading.reviewer == "ben"


def test_votes_survive_a_kill(tmp_path: Path) -> None:
    """A process that votes as fast as it can is killed: each vote that it told of is in the file."""
    path = tmp_path / "ben.jsonl"
    begin(path, HEADING, AT)
    code = (
        "import sys\nfrom datetime import UTC, datetime\nfrom pathlib import Path\n"
        "from lora_ops.gates.review.annotations import record\n"
        "from lora_ops.records.review import Judgement\n"
        "for task in range(1, 10**6):\n"
        "    record(Path(sys.argv[1]), task, Judgement(vote='left'), datetime.now(UTC), seen=None)\n"
        "    print(task, flush=True)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "1\n"
    time.sleep(0.2)
    os.kill(child.pid, signal.SIGKILL)
    told = 1 + len(child.stdout.read().splitlines())
    child.wait()
    assert told <= len(begin(path, HEADING, AT).judged) <= told + 1


def test_record_says_what_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "votes").write_text("a file")
    with pytest.raises(LoraOpsError, match="can't be written .*: this vote is not kept"):
        begin(tmp_path / "votes" / "ben.jsonl", HEADING, AT)
