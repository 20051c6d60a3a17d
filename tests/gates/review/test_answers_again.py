"""Reviewers judge answers that were given again for the regression report, and no other vote counts."""

from dataclasses import dataclass, field

import pytest

from lora_ops.errors import Damaged, Refused
from lora_ops.gates.gate import gate_rows, replay
from lora_ops.gates.review.annotated import annotated_pairs
from lora_ops.gates.review.desk import Desk
from lora_ops.gates.review.evidence import Counting, bundle, count, make_report, recount
from lora_ops.gates.review.sessions import Session, open_session, start, texts_of
from lora_ops.gates.review.submissions import submit, submitted
from lora_ops.hashing import sha256_file
from lora_ops.records.evidence import HumanEvidence
from lora_ops.registry import lifecycle
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import Report
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.rollbacks import against_return
from lora_ops.registry.rules import weaknesses
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from tests.gates.sources import file_answers_again
from tests.registry.conftest import AUTHOR, Build, Story, fill_in, right_answers, ssh_key, won

PEOPLE = ("ben", "dana")
ROWS = 300
LACKS_AGAIN = "a human evaluation of answers that base model and adapter gave again"
LACKS_LAST = "a human evaluation of the answers in its last regression report"
NEVER_SERVED = "a human evaluation against its base model or a version that was in production"
"""What a step says of votes on packaged answers, and of votes that were counted by an earlier report."""


@dataclass
class Reviewed:
    """finance@1 with a regression report, and a review of it that two people have handed in."""

    registry: Registry
    story: Story
    session: Session = field(init=False)

    def review(self, against: str = "base") -> None:
        self.session = start(
            self.registry, "finance@1", actor="ci", reviewers=PEOPLE, pairs=30, against=against
        )
        for person in PEOPLE:
            fill_in(self.registry, self.session, person, won)
            submit(self.registry, self.session, actor=person, key=ssh_key(person))

    def file(self) -> HumanEvidence:
        report, _ = make_report(self.registry, "finance@1")
        lifecycle.file_evidence(self.registry, "finance@1", report, actor="ci")
        assert isinstance(report.document, HumanEvidence)
        return report.document

    @property
    def lacking(self) -> str:
        return "; ".join(missing_for(self.registry, "finance@1")[1])


@pytest.fixture
def made(registry: Registry, package: Build, story: Story) -> Reviewed:
    """finance@1, registered, in a registry that asks for regression reports; nobody has asked it again."""
    registry.least = registry.least.model_copy(update={"regression": True})
    registry.register(*package(1), actor=AUTHOR)
    return Reviewed(registry, story)


def answers(*places: int, text: str = "Food!") -> list[str]:
    """The adapter's packaged answers, with another text at some places."""
    share = 0.5 + 1 / 40
    packaged = ["Food" if right else "Travel" for right in right_answers(ROWS, share)]
    return [text if place in places else one for place, one in enumerate(packaged)]


def rows_of(session: Session) -> list[int]:
    return [int(pair.row) for pair in session.plan.pairs if pair.differs]


def test_a_review_needs_answers_given_again(made: Reviewed) -> None:
    with pytest.raises(Refused, match="give again: run `lora-ops gate finance@1` first.$"):
        start(made.registry, "finance@1", actor="ci", reviewers=PEOPLE)
    made.registry.least = made.registry.least.model_copy(update={"evaluation_again": False})
    assert start(made.registry, "finance@1", actor="ci", reviewers=PEOPLE).plan.regression_sha256 is None


def test_a_plan_names_the_report_whose_answers_it_shows(made: Reviewed) -> None:
    again = answers(*range(100, 150), text="Food!")
    file_answers_again(made.registry, "finance@1", adapter=again)
    session = start(made.registry, "finance@1", actor="ci", reviewers=PEOPLE, pairs=150)
    [report] = [one.sha256 for entry in made.registry.log.entries("finance", 1) for one in entry.evidence]
    assert session.plan.regression_sha256 == report
    texts = texts_of(made.registry, session)
    assert {row: text.adapter for row, text in texts.items()} == {row: again[int(row)] for row in texts}
    assert "Food!" in {text.adapter for text in texts.values()}


def test_the_opponents_answers_are_those_given_again(made: Reviewed, package: Build) -> None:
    made.registry.register(*package(2), actor=AUTHOR)
    for name, text in (("finance@1", "Food?"), ("finance@2", "Food!")):
        file_answers_again(made.registry, name, adapter=answers(*range(9), text=text))
    session = start(made.registry, "finance@2", actor="ci", reviewers=PEOPLE, against="finance@1")
    assert session.plan.against_regression_sha256
    texts = texts_of(made.registry, session)
    assert {(texts[str(row)].adapter, texts[str(row)].other) for row in rows_of(session)} == {
        ("Food!", "Food?")
    }


def test_a_review_against_a_candidate_is_missing_evidence(made: Reviewed, package: Build) -> None:
    """Whoever starts a review chose an adapter that was made to lose, and the gate passed."""
    registry = made.registry
    registry.register(*package(2), actor=AUTHOR)
    right = [place for place, one in enumerate(answers()) if one == "Food"]
    file_answers_again(registry, "finance@1", adapter=answers(*right[:60], text="Food!"))
    file_answers_again(registry, "finance@2")
    made.review(against="finance@2")
    made.story.file("policy")
    lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="passes")
    made.file()
    assert f"{NEVER_SERVED} (the last one is against finance@2, which never was" in made.lacking
    [row] = [one for one in gate_rows(registry, registry.get("finance@1")) if one.gate == "human review"]
    assert row.verdict == "missing" and NEVER_SERVED in row.note
    with pytest.raises(Refused, match=NEVER_SERVED):
        lifecycle.promote(registry, "finance@1", "shadow", actor="ci", reason="liked")
    made.story.to("finance@2", "production")
    assert NEVER_SERVED not in made.lacking


def test_a_review_without_most_votes_is_missing_evidence(made: Reviewed) -> None:
    """Whoever removed the files of the one who voted against it got 30 pairs of 90 that the adapter won."""
    registry = made.registry
    right = [place for place, one in enumerate(answers()) if one == "Food"]
    file_answers_again(registry, "finance@1", adapter=answers(*right[:60], text="Food!"))
    people = (*PEOPLE, "chen")
    session = start(registry, "finance@1", actor="ci", reviewers=people, pairs=90)
    for person in people:
        fill_in(registry, session, person, (lambda place, who: "other") if person == "chen" else won)
        submit(registry, session, actor=person, key=ssh_key(person))
    for path in session.folder.rglob("chen.*"):
        path.unlink()
    assert made.file().base_better < made.registry.least.pairs
    made.story.file("policy")
    half = "at least half of the pairs that were planned .of 90 pairs 30 have votes that count, of ben, dana"
    with pytest.raises(Refused, match=half):
        lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="passes")
    [row] = [one for one in gate_rows(registry, registry.get("finance@1")) if one.gate == "human review"]
    assert row.verdict == "missing" and "90 pairs were planned, and votes of ben, dana count" in row.found


def test_votes_on_other_texts_do_not_count(made: Reviewed) -> None:
    """A gate on another machine gives other texts to a few rows; who votes again need not be asked."""
    file_answers_again(made.registry, "finance@1", adapter=answers())
    made.review()
    made.file()
    assert LACKS_LAST not in made.lacking
    other = rows_of(made.session)[:4]
    file_answers_again(made.registry, "finance@1", adapter=answers(*other))
    assert f"{LACKS_LAST} (it was counted by an earlier report with other answers: `lora-ops review file" in (
        made.lacking
    )
    version = made.registry.get("finance@1")
    [row] = [one for one in gate_rows(made.registry, version) if one.gate == "human review"]
    assert row.verdict == "missing" and LACKS_LAST in row.note
    document = made.file()
    assert document.pairs == 26 and document.review and document.review.other_texts == 4
    assert LACKS_LAST not in made.lacking
    [row] = [one for one in gate_rows(made.registry, version) if one.gate == "human review"]
    assert row.verdict == "pass" and "4 pairs show other texts than are given now" in row.found
    assert list(replay(made.registry, version)) == []
    assert not {pair.row for pair in annotated_pairs(made.registry, version)} & {str(row) for row in other}


def test_too_few_pairs_with_the_same_texts_say_so(made: Reviewed) -> None:
    file_answers_again(made.registry, "finance@1", adapter=answers())
    made.review()
    file_answers_again(made.registry, "finance@1", adapter=answers(*rows_of(made.session)[15:27]))
    [needed] = lacks(made.file(), made.registry.least)
    assert "at least 20 pairs" in needed and "12 show other texts than its last regression report" in needed


def test_a_newer_report_with_the_same_answers_voids_no_review(made: Reviewed) -> None:
    """Once another version is in production, the gate runs again."""
    first = file_answers_again(made.registry, "finance@1", adapter=answers())
    made.review()
    made.file()
    assert file_answers_again(made.registry, "finance@1", rows=61, adapter=answers()) != first
    assert LACKS_LAST not in made.lacking
    file_answers_again(made.registry, "finance@1", adapter=answers(), base=answers())
    assert LACKS_LAST in made.lacking  # the base model's answers are judged, too


def test_votes_on_packaged_answers_are_missing_evidence(made: Reviewed) -> None:
    """A review of an earlier release names no report; what rests on it already stays."""
    registry = made.registry
    registry.least = registry.least.model_copy(update={"texts_again": False})
    made.review()
    file_answers_again(registry, "finance@1", adapter=answers())
    made.story.file("policy")
    lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="passes")
    made.file()
    lifecycle.promote(registry, "finance@1", "shadow", actor="ci", reason="liked")
    registry.least = registry.least.model_copy(update={"texts_again": True})
    assert verify(registry).problems == ()
    assert "texts_again 0, not 1" in " ".join(weaknesses(registry.log.entries("finance", 1), "finance@1"))
    assert LACKS_AGAIN in made.lacking
    [row] = [one for one in gate_rows(registry, registry.get("finance@1")) if one.gate == "human review"]
    assert row.verdict == "missing" and LACKS_AGAIN in row.note
    with pytest.raises(Refused, match="shows packaged answers.*move .* away, and run `lora-ops"):
        Desk(registry, open_session(registry, "finance@1"), "ben")


def test_a_later_report_stops_no_return_to_production(made: Reviewed) -> None:
    file_answers_again(made.registry, "finance@1", adapter=answers())
    made.story.to("finance@1", "production")
    file_answers_again(made.registry, "finance@1", adapter=answers(*range(ROWS)))
    version = made.registry.get("finance@1")
    assert list(against_return(made.registry, version)) == []
    assert verify(made.registry).problems == ()


def test_replay_draws_the_plan_again(made: Reviewed) -> None:
    """Whoever chose the pairs and counted them by hand was not seen by the replay."""
    registry = made.registry
    file_answers_again(registry, "finance@1", adapter=answers())
    session = start(registry, "finance@1", actor="ci", reviewers=PEOPLE, pairs=20)
    planned = {pair.row for pair in session.plan.pairs}
    other = next(str(row) for row in range(60, 150) if str(row) not in planned)
    path = session.folder / "plan.json"
    path.write_text(path.read_text().replace(f'"row": "{session.plan.pairs[0].row}"', f'"row": "{other}"'))
    (session.folder / "plan.sha256").write_text(f"{sha256_file(path)}  plan.json\n")
    session = open_session(registry, "finance@1")
    for person in PEOPLE:
        fill_in(registry, session, person, won)
        submit(registry, session, actor=person, key=ssh_key(person))
    found = [one for one in (submitted(registry, session, person) for person in PEOPLE) if one]
    counting = Counting(
        2, {one.reviewer: one.key for one in found}, {}, registry.clock(), session.plan.regression_sha256
    )
    content = bundle(session, found)
    kept = Report(count(content, counting), content, "by hand").keep(registry.files)
    assert recount(registry, kept) == ["plan"]


def test_a_plan_names_a_report_of_its_own_version(made: Reviewed, package: Build) -> None:
    registry = made.registry
    file_answers_again(registry, "finance@1", adapter=answers())
    session = start(registry, "finance@1", actor="ci", reviewers=PEOPLE, pairs=20)
    registry.register(*package(2), actor=AUTHOR)
    file_answers_again(registry, "finance@2")
    other = start(registry, "finance@2", actor="ci", reviewers=PEOPLE, pairs=20).plan.regression_sha256
    plan = session.plan.model_copy(update={"regression_sha256": other})
    with pytest.raises(Damaged, match="No regression report .* is filed on finance@1: start its review again"):
        texts_of(registry, session._replace(plan=plan))
