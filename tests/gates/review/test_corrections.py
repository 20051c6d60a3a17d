"""Corrected answers: training rows only where nobody tests with them."""

import json
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.review.corrections import corrections, write
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.sessions import Session, texts_of
from lora_ops.gates.review.submissions import submit
from lora_ops.records.review import Judgement
from lora_ops.registry.store import Registry
from tests.registry.conftest import ssh_key


@pytest.fixture
def corrected(registry: Registry, session: Session) -> list[str]:
    """Let reviewers correct three rows, one of them in two ways; return the rows, the disputed one last."""
    shared = {task.row for task in session.plan.tasks["ben"]} & {
        task.row for task in session.plan.tasks["dana"]
    }
    rows = sorted(shared)[:3]
    for person in ("ben", "dana"):
        desk = Desk(registry, session, person, registry.clock)
        for place, task in enumerate(session.plan.tasks[person], 1):
            answer = f"Food by {person}" if task.row == rows[2] else "Food" if task.row in rows else ""
            desk.say(place, Judgement(vote="same", corrected=answer))
        submit(registry, session, actor=person, key=ssh_key(person))
    return rows


def test_rows_that_are_tested_with_are_refused(
    registry: Registry, session: Session, corrected: list[str], tmp_path: Path
) -> None:
    found = corrections(registry, session, ())
    assert found.rows == [] and len(found.held_out) == 2
    with pytest.raises(Refused, match=r"Nothing was written. .* of 2 groups .* moved_groups: \[\"test"):
        write(found, tmp_path / "rows.jsonl", "finance")
    assert not (tmp_path / "rows.jsonl").exists()


def test_rows_of_moved_groups_are_written_with_their_origin(
    registry: Registry, session: Session, corrected: list[str], tmp_path: Path
) -> None:
    texts = texts_of(registry, session)
    found = corrections(registry, session, [texts[row].group for row in corrected])
    assert found.disputed == [texts[corrected[2]].text] and found.held_out == []
    write(found, tmp_path / "rows.jsonl", "finance")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["row"] for row in rows} == set(corrected[:2])
    assert all(row["target"] == "Food" and row["reviewers"] == ["ben", "dana"] for row in rows)
    assert all(row["plan_sha256"] == session.plan_sha256 and row["adapter"] == "finance@1" for row in rows)
    with pytest.raises(LoraOpsError, match="exists already"):
        write(found, tmp_path / "rows.jsonl", "finance")


def test_a_review_without_corrections_says_so(registry: Registry, session: Session, tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="No submitted vote has a corrected answer"):
        write(corrections(registry, session, ()), tmp_path / "rows.jsonl", "finance")
