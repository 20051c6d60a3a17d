"""From votes to evidence: what counts, what is refused, and what the registry asks of it."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused
from lora_ops.gates.gate import gate_rows, replay
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.evidence import make_report, recount
from lora_ops.gates.review.sessions import Session, open_session, start
from lora_ops.gates.review.submissions import submit
from lora_ops.hashing import sha256_file
from lora_ops.records.evidence import DOCUMENT, HumanEvidence
from lora_ops.records.review import Judgement, ReviewCounts
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.rules import weaknesses
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.registry import EvidenceSettings
from tests.gates.sources import file_answers_again
from tests.registry.conftest import (
    AT_ONCE,
    AUTHOR,
    Build,
    Story,
    fill_in,
    losing,
    public_key,
    reviewed,
    ssh_key,
    won,
)

PEOPLE = ("ben", "chen", "dana")
RATED = {"ratings": {"left": {"accuracy": 4}, "right": {"accuracy": 4, "trust": 2}}}


def hand_in(registry: Registry, session: Session, say: Callable[[int, str], str] = won, **more: object) -> None:
    for person in session.plan.tasks:
        fill_in(registry, session, person, say, lambda place: dict(more))
        submit(registry, session, actor=person, key=ssh_key(person))


def written(adapter: str) -> str:
    """Return votes as people wrote them into a file before there were sessions."""
    row = {"adapter": adapter, "vote": "adapter"}
    votes = [{**row, "pair": str(pair), "annotator": who} for pair in range(20) for who in ("dana", "eve")]
    return "".join(f"{json.dumps(vote)}\n" for vote in votes)


def counts(document: object) -> ReviewCounts:
    assert isinstance(document, HumanEvidence) and document.review is not None
    return document.review


def test_session_is_counted_with_its_repeats_checks_and_ratings(registry: Registry, session: Session) -> None:
    def say(place: int, person: str) -> str:
        return "same" if place == 20 else won(place, person)

    hand_in(registry, session, say, breach={"left": "advice"}, comment="hm", **RATED)
    report, left_out = make_report(registry, "finance@1")
    document, found = report.document, counts(report.document)
    assert isinstance(document, HumanEvidence) and left_out == []
    assert (document.annotators, document.votes_needed, document.pairs, document.too_few_votes) == (3, 2, 20, 0)
    assert (document.adapter_better, document.same, document.base_better) == (12, 5, 3)
    assert found.alpha is not None and found.alpha.value == 1 and found.alike == 1
    assert found.win_rate_by_pair is not None and found.win_rate_by_pair.value == pytest.approx(0.725)
    assert (found.checks, found.checks_same) == (2, 2)
    assert all(
        one.key and one.judged == one.tasks and one.repeats_alike == one.repeats for one in found.reviewers
    )
    assert sum(one.repeats for one in found.reviewers) == 3
    assert (
        found.ratings["adapter"]["accuracy"].mean.value == 4 and found.ratings["other"]["trust"].mean.value == 2
    )
    assert found.breaches["adapter"] + found.breaches["other"] >= 20 and found.comments == 45
    assert DOCUMENT.validate_json(document.to_json()) == document
    assert list(lacks(document, registry.least)) == []


def test_a_reviewer_who_contradicts_themself_is_seen(registry: Registry, session: Session) -> None:
    for person in PEOPLE:
        desk = Desk(registry, session, person, registry.clock)
        for place in range(1, desk.total + 1):
            desk.say(place, Judgement(vote="left"))  # whoever always clicks left is no reviewer
        submit(registry, session, actor=person, key=ssh_key(person))
    document = make_report(registry, "finance@1")[0].document
    found = counts(document)
    assert all(one.repeats_alike == 0 for one in found.reviewers)
    assert found.alpha is not None and found.alpha.value < 0.667
    [needed] = [one for one in lacks(document, registry.least) if "agree" in one]
    assert needed.startswith("a human evaluation whose reviewers agree (Krippendorff's alpha ")


def test_votes_that_do_not_agree_are_missing_evidence(registry: Registry, package: Build, story: Story) -> None:
    """Below the floor of agreement nothing passes, whoever wins."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "validated")
    report = reviewed(
        registry, "finance@1", lambda place, who: "adapter" if who == "ben" or place < 9 else "other"
    )
    lifecycle.file_evidence(registry, "finance@1", report, actor="ci")
    stage, needed = missing_for(registry, "finance@1")
    assert stage == "shadow" and len(needed) == 1 and "Krippendorff's alpha" in needed[0]
    with pytest.raises(Refused, match="at least 0.667 is needed"):
        lifecycle.promote(registry, "finance@1", "shadow", actor="ci", reason="next")
    registry.least = registry.least.model_copy(update={"agreement": -1.0})
    lifecycle.promote(registry, "finance@1", "shadow", actor="ci", reason="next")
    notes = weaknesses(registry.log.entries("finance", 1), "finance@1")
    assert any("agreement -1, not 0.667" in note for note in notes)
    assert verify(registry).ok


def test_one_reviewer_alone_has_no_agreement(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    file_answers_again(registry, "finance@1")
    registry.least = registry.least.model_copy(update={"annotators": 1})
    document = reviewed(registry, "finance@1", won, ("ben",)).document
    [needed] = lacks(document, registry.least)
    assert needed == (
        "a human evaluation whose reviewers' agreement can be measured (no pair was judged by two reviewers)"
    )


def test_written_votes_count_no_more(registry: Registry, package: Build, story: Story, tmp_path: Path) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "validated")
    rows = tmp_path / "votes.jsonl"
    rows.write_text(written("finance@1"))
    with pytest.raises(Refused, match="Votes on finance@1 are given in a review session, not written"):
        make(registry, "finance@1", "human_evaluation", rows)
    registry.least = registry.least.model_copy(update={"votes": "file"})
    old = make(registry, "finance@1", "human_evaluation", rows)
    lifecycle.file_evidence(registry, "finance@1", old, actor="ci")
    assert missing_for(registry, "finance@1") == ("shadow", [])
    registry.least = registry.least.model_copy(update={"votes": "session"})
    needed = "votes from a review session (`lora-ops review start finance@1`)"
    assert missing_for(registry, "finance@1") == ("shadow", [needed])


def test_an_older_promotion_on_written_votes_still_verifies(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """Entries of releases before review sessions say nothing of them, and a rollback asks for none."""
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
    registry.least = EvidenceSettings(**AT_ONCE, votes="file", agreement=-1)
    rows = tmp_path / "votes.jsonl"
    for number in (1, 2):
        rows.write_text(
            "".join(
                json.dumps(
                    {"adapter": f"finance@{number}", "pair": str(i), "annotator": who, "vote": "adapter"}
                )
                + "\n"
                for i in range(20)
                for who in ("dana", "eve")
            )
        )
        story.to(f"finance@{number}", "validated")
        given = make(registry, f"finance@{number}", "human_evaluation", rows)
        lifecycle.promote(registry, f"finance@{number}", "shadow", actor="ci", reason="next", evidence=[given])
        story.to(f"finance@{number}", "production")
    registry.least = EvidenceSettings(hours=0)
    assert verify(registry).problems == ()
    told = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=told)
    assert registry.named("finance", "production") == 1


def test_filed_review_is_counted_again_from_what_is_kept(registry: Registry, session: Session) -> None:
    hand_in(registry, session)
    report, _ = make_report(registry, "finance@1")
    lifecycle.file_evidence(registry, "finance@1", report, actor="ci")
    for path in session.folder.rglob("*.json*"):
        path.unlink()
    assert recount(registry, report.reference) == []
    document = counts(report.document).model_copy(update={"checks_same": 0})
    other = report._replace(document=report.document.model_copy(update={"pairs": 21, "review": document}))
    assert recount(registry, other.keep(registry.files)) == ["pairs", "review"]


def test_gate_shows_and_replays_a_review(registry: Registry, session: Session) -> None:
    hand_in(registry, session)
    report, _ = make_report(registry, "finance@1")
    lifecycle.file_evidence(registry, "finance@1", report, actor="ci")
    version = registry.get("finance@1")
    [row] = [row for row in gate_rows(registry, version) if row.gate == "human review"]
    assert row.verdict == "pass" and "better 12, same 5, worse 3 of 20 pairs; win rate 0.7" in row.found
    assert "Krippendorff's alpha 1.000" in row.found and list(replay(registry, version)) == []
    other = report._replace(document=report.document.model_copy(update={"pairs": 21}))
    lifecycle.file_evidence(registry, "finance@1", other, actor="ci")
    assert list(replay(registry, version)) == ["human_evaluation.pairs is not what the kept votes give"]


def test_nobody_files_a_review_without_votes(registry: Registry, session: Session) -> None:
    with pytest.raises(Refused, match=r"no votes that count yet \(ben has not submitted; chen has"):
        make_report(registry, "finance@1")
    with pytest.raises(Refused, match="ben has judged no pair of finance@1 yet"):
        submit(registry, session, actor="ben", key=ssh_key("ben"))


def test_submit_asks_for_every_pair_unless_told(registry: Registry, session: Session) -> None:
    desk = Desk(registry, session, "ben", registry.clock)
    desk.say(1, Judgement(vote="left"))
    desk.say(2, Judgement(comment="a draft has no vote"))
    with pytest.raises(Refused, match=f"ben has judged 1 of {desk.total} pairs of finance@1: judge the others"):
        submit(registry, session, actor="ben", key=ssh_key("ben"))
    assert submit(registry, session, actor="ben", key=ssh_key("ben"), partial=True).judged == 1
    with pytest.raises(Refused, match="ben has submitted these votes: they can't be changed any more"):
        desk.say(3, Judgement(vote="left"))
    with pytest.raises(Refused, match="ben has submitted the votes on finance@1 already"):
        submit(registry, session, actor="ben", key=ssh_key("ben"), partial=True)
    report, left_out = make_report(registry, "finance@1")
    assert left_out == ["chen has not submitted", "dana has not submitted"]
    assert isinstance(report.document, HumanEvidence) and report.document.pairs == 0


def test_submit_loses_no_vote_of_another_window(registry: Registry, session: Session) -> None:
    """A vote that came in between reading and signing was cut off the file, or made it look edited."""
    desk, clock = Desk(registry, session, "ben", registry.clock), registry.clock
    desk.say(1, Judgement(vote="left"))

    def meanwhile() -> datetime:
        registry.clock = clock
        desk.say(2, Judgement(vote="right"))
        return clock()

    registry.clock = meanwhile  # submit asks for the time once it has read the votes
    with pytest.raises(Refused, match="ben.jsonl got another vote while it was signed: submit again"):
        submit(registry, session, actor="ben", key=ssh_key("ben"), partial=True)
    assert not session.submission_of("ben").exists()
    assert submit(registry, session, actor="ben", key=ssh_key("ben"), partial=True).judged == 2


def test_submission_is_signed_with_the_reviewers_own_key(registry: Registry, session: Session) -> None:
    fill_in(registry, session, "ben", won)
    with pytest.raises(Refused, match="Votes are signed: name your SSH key"):
        submit(registry, session, actor="ben")
    with pytest.raises(Refused, match="is none of ben's keys in owners.yaml"):
        submit(registry, session, actor="ben", key=ssh_key("chen"))
    registry.approvals = "unsigned"
    submit(registry, session, actor="ben")
    registry.approvals = "signed"
    with pytest.raises(Refused, match="The votes of ben are not signed .registry.approvals: signed.: remove"):
        make_report(registry, "finance@1")


def test_an_approval_signature_is_none_of_votes(registry: Registry, session: Session) -> None:
    """The same key signs approvals, for another purpose."""
    from lora_ops.hashing import canonical
    from lora_ops.registry.ssh_signatures import sign

    fill_in(registry, session, "ben", won)
    said = submit(registry, session, actor="ben", key=ssh_key("ben"))
    path = session.submission_of("ben")
    content = json.loads(path.read_text())
    content["signature"] = sign(canonical(said.model_dump(mode="json")), ssh_key("ben"))
    path.write_text(json.dumps(content))
    with pytest.raises(Refused, match="signature of ben's votes fits no key of theirs"):
        make_report(registry, "finance@1")


@pytest.mark.parametrize("what", ["edited", "cut", "gone", "statement", "plan", "pipe"])
def test_what_was_changed_after_submitting_is_named(registry: Registry, session: Session, what: str) -> None:
    hand_in(registry, session)
    path = session.file_of("chen")
    if what == "edited":
        path.write_text(path.read_text().replace('"vote":"left"', '"vote":"right"', 1))
    elif what == "cut":
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    elif what == "gone":
        path.unlink()
    elif what == "pipe":
        session.submission_of("chen").unlink()
        os.mkfifo(session.submission_of("chen"))
    elif what == "statement":
        statement = session.submission_of("chen")
        statement.write_text(statement.read_text().replace('"person": "chen"', '"person": "ben"'))
    else:
        plan = session.folder / "plan.json"
        plan.write_text(plan.read_text().replace('"left"', '"right"', 1))
    with pytest.raises((Damaged, Refused), match="was changed|are gone|under another plan|is no submission"):
        make_report(registry, "finance@1")


def test_the_author_neither_votes_nor_counts(registry: Registry, session: Session, owners: Owners) -> None:
    with pytest.raises(Refused, match="Ana is the author of finance@1: others must judge its answers"):
        Desk(registry, session, AUTHOR)
    with pytest.raises(Refused, match="Ana is the author of finance@1"):
        start(registry, "finance@1", actor="ci", reviewers=(AUTHOR, "ben"))
    hand_in(registry, session)
    people = [
        one.model_copy(update={"id": "ana2", "logins": (AUTHOR,)})
        if one.id == AUTHOR
        else one.model_copy(update={"logins": ("ana.silva",)})
        if one.id == "chen"
        else one
        for one in owners.default.people
    ]
    team = owners.default.model_copy(update={"people": tuple(people)})
    registry.owners = owners.model_copy(update={"default": team})
    report, left_out = make_report(registry, "finance@1")
    document = report.document
    assert isinstance(document, HumanEvidence)
    assert left_out == ["chen is the author of finance@1, or nobody can tell who is"]
    assert document.other_votes > 10 and {one.person for one in counts(document).reviewers} == {"ben", "dana"}


@pytest.mark.parametrize(
    ("actor", "why"),
    [("ci", "may not vote on finance@1"), ("nobody", "may not vote"), ("eve", "not among the reviewers")],
)
def test_only_the_plans_reviewers_vote(registry: Registry, session: Session, actor: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        Desk(registry, session, actor)


def test_a_review_is_of_one_version(registry: Registry, session: Session, package: Build) -> None:
    registry.register(*package(2), actor=AUTHOR)
    file_answers_again(registry, "finance@2")
    with pytest.raises(NotFound, match="Nobody has started a review of finance@2: `lora-ops review start"):
        open_session(registry, "finance@2")
    other = start(registry, "finance@2", actor="ci", reviewers=PEOPLE, pairs=20)
    hand_in(registry, session)
    for person in PEOPLE:  # votes on finance@1 are laid into the folder of finance@2
        for source, target in (
            (session.file_of(person), other.file_of(person)),
            (session.submission_of(person), other.submission_of(person)),
        ):
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
    with pytest.raises(Refused, match="is about finance@1 by ben, under another plan"):
        make_report(registry, "finance@2")
    with pytest.raises(Refused, match="is about another plan"):
        Desk(registry, other, "ben")


def test_a_review_that_was_begun_is_not_started_again(registry: Registry, session: Session) -> None:
    again = start(registry, "finance@1", actor="ci", reviewers=PEOPLE, pairs=21)
    assert again.plan_sha256 != session.plan_sha256
    Desk(registry, again, "ben")
    with pytest.raises(Refused, match=r"has votes already \(ben\): go on with it, or move"):
        start(registry, "finance@1", actor="ci")


def test_a_plan_that_somebody_chose_is_refused(registry: Registry, session: Session) -> None:
    """Its digest was mended, too, before anybody voted."""
    path = session.folder / "plan.json"
    first, other = (
        session.plan.pairs[0].row,
        next(str(row) for row in range(100, 140) if str(row) not in {pair.row for pair in session.plan.pairs}),
    )
    path.write_text(path.read_text().replace(f'"row": "{first}"', f'"row": "{other}"'))
    (session.folder / "plan.sha256").write_text(f"{sha256_file(path)}  plan.json\n")
    hand_in(registry, open_session(registry, "finance@1"))
    with pytest.raises(Damaged, match="is not what its seed draws: somebody changed it"):
        make_report(registry, "finance@1")


def test_nobody_draws_until_the_rows_suit_them(registry: Registry, session: Session) -> None:
    """A random seed could be drawn again and again before the first vote; a chosen one is named."""
    hand_in(registry, session)
    assert counts(make_report(registry, "finance@1")[0].document).is_own_seed
    shutil.rmtree(session.folder)
    plans = [start(registry, "finance@1", actor="ci", reviewers=PEOPLE, pairs=20).plan for _ in range(2)]
    assert plans[0].tasks == plans[1].tasks != session.plan.tasks
    hand_in(registry, open_session(registry, "finance@1"))
    assert not counts(make_report(registry, "finance@1")[0].document).is_own_seed


def test_start_takes_everybody_who_may_judge(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    file_answers_again(registry, "finance@1")
    made = start(registry, "finance@1", actor="ci")
    assert sorted(made.plan.tasks) == ["ben", "chen", "dana", "eve"]
    with pytest.raises(Refused, match="Each pair needs 2 reviewers .*: 1 are fewer"):
        start(registry, "finance@1", actor="ci", annotators=1)
    with pytest.raises(LoraOpsError, match="compared with another version of 'finance', or `base`"):
        start(registry, "finance@1", actor="ci", against="finance@1")


def test_a_review_against_production_uses_common_rows(registry: Registry, package: Build, story: Story) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
    story.to("finance@1", "production")
    made = start(registry, "finance@2", actor="ci", against="production", reviewers=PEOPLE, pairs=3)
    assert made.plan.against == "finance@1" and made.plan.against_answers_sha256
    assert 0 < made.plan.differing < 10  # one row in a hundred of their exact match
    hand_in(registry, made, losing(3))
    document = make_report(registry, "finance@2")[0].document
    assert counts(document).against == "finance@1"
    assert any("better in 0 of 3 pairs, finance@1 in 3" in one for one in lacks(document, registry.least))


def test_reviewers_key_must_be_theirs_when_votes_are_counted(
    registry: Registry, session: Session, owners: Owners
) -> None:
    hand_in(registry, session)
    people = [
        one.model_copy(update={"keys": (public_key("somebody"),)}) if one.id == "ben" else one
        for one in owners.default.people
    ]
    team = owners.default.model_copy(update={"people": tuple(people)})
    registry.owners = owners.model_copy(update={"default": team})
    with pytest.raises(Refused, match="signature of ben's votes fits no key of theirs in owners.yaml: remove"):
        make_report(registry, "finance@1")
