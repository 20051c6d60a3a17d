"""What a click does, without a browser."""

import json
from typing import Any

import pytest

from lora_ops.gates.review.annotations import read
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.evidence import make_report
from lora_ops.gates.review.progress import findings, progress
from lora_ops.gates.review.sessions import Session
from lora_ops.gates.review.submissions import submit
from lora_ops.gates.review.widget import ReviewDesk
from lora_ops.records.evidence import HumanEvidence
from lora_ops.registry.store import Registry
from tests.registry.conftest import fill_in, ssh_key, won

NOTHING: dict[str, Any] = {"vote": None, "ratings": {}, "breach": {}, "comment": "", "corrected": ""}


@pytest.fixture
def shown(registry: Registry, session: Session) -> ReviewDesk:
    return ReviewDesk(Desk(registry, session, "ben", registry.clock), "Be fair.")


def click(shown: ReviewDesk, do: str, **said: object) -> dict[str, Any]:
    shown._on_message(None, {"do": do, "place": shown.state["place"], "said": {**NOTHING, **said}}, [])
    return shown.state


def test_browser_is_told_nothing_that_unblinds(shown: ReviewDesk) -> None:
    told = json.dumps(shown.state)
    assert "adapter" not in told and "base" not in told and "repeat" not in told and "row" not in shown.state


def test_click_is_on_the_disk_before_it_is_told(shown: ReviewDesk, session: Session) -> None:
    state = click(shown, "say", vote="left", ratings={"left": {"trust": 5}})
    assert state["message"].startswith("Saved at 2026-03-02") and state["judged"] == 1
    assert read(session.file_of("ben")).last[1].said.ratings == {"left": {"trust": 5}}


def test_skipped_pairs_come_back_at_the_end(shown: ReviewDesk) -> None:
    click(shown, "next")
    while shown.state["place"] < shown.state["total"]:
        click(shown, "say", vote="same")
        click(shown, "next")
    click(shown, "say", vote="same")
    state = click(shown, "next")
    assert state["place"] == 1 and state["message"] == "These pairs were skipped."
    click(shown, "say", vote="right")
    shown._on_message(None, {"do": "back", "place": 1}, [])
    for _ in range(state["total"]):
        click(shown, "next")
    assert "Every pair is judged. Hand the votes in: lora-ops review submit" in shown.state["message"]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"vote": "adapter"}, "This is not kept: vote: Input should be 'left', 'right' or 'same'"),
        ({"ratings": {"left": {"accuracy": 6}}}, "less than or equal to 5"),
        ({"ratings": {"left": {"charm": 1}}}, "This is not kept: ratings.left.charm"),
        ({"comment": "x" * 20_001}, "at most 20000 characters"),
        ({"comment": "\ud800"}, "This is not kept: comment"),
        ({"winner": "left"}, "winner: is not a setting|winner"),
    ],
)
def test_what_is_no_judgement_is_not_kept(
    shown: ReviewDesk, session: Session, said: dict[str, object], problem: str
) -> None:
    state = click(shown, "say", **said)
    assert any(part in state["problem"] for part in problem.split("|")) and state["judged"] == 0
    assert read(session.file_of("ben")).last == {}


def test_two_windows_of_one_reviewer_do_not_vote_twice(
    registry: Registry, session: Session, shown: ReviewDesk
) -> None:
    other = ReviewDesk(Desk(registry, session, "ben", registry.clock))
    click(shown, "say", vote="left")
    state = click(other, "say", vote="right")
    assert state["problem"].startswith("Pair 1 was judged already, and counts once")
    assert state["said"]["vote"] == "left" and state["judged"] == 1
    assert click(other, "say", vote="right")["judged"] == 1  # having seen it, they may change it
    assert read(session.file_of("ben")).last[1].said.vote == "right"


def test_progress_tells_how_far_and_not_what(registry: Registry, session: Session, shown: ReviewDesk) -> None:
    click(shown, "say", vote="left")
    assert [(one.reviewer, one.judged, one.is_submitted) for one in progress(session)] == [
        ("ben", 1, False), ("chen", 0, False), ("dana", 0, False),
    ]  # fmt: skip
    path = session.file_of("ben")
    path.write_text(path.read_text().replace('"left"', '"same"'))
    assert "was edited by hand" in progress(session)[0].problem


def test_findings_say_what_was_counted(registry: Registry, session: Session) -> None:
    for person in session.plan.tasks:
        fill_in(registry, session, person, won)
        submit(registry, session, actor=person, key=ssh_key(person))
    document = make_report(registry, "finance@1")[0].document
    assert isinstance(document, HumanEvidence)
    said = list(findings(document))
    assert said[0].startswith("3 reviewers judged 20 pairs: finance@1 is better in 12, its base model in 3")
    assert any(line.startswith("win rate 72% [") and line.endswith("over reviewers") for line in said)
    assert "Krippendorff's alpha 1.000 [1.000, 1.000], 100% of votes alike" in said
