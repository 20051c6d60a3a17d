"""Rows in, counts out: what is counted, what is refused, and that every document names its version."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_bytes
from lora_ops.records.evidence import (
    DOCUMENT,
    HumanEvidence,
    PolicyCheck,
    PolicyEvidence,
    TextEvidence,
    TrafficEvidence,
)
from lora_ops.registry.counting import About, count
from lora_ops.registry.owners import Team
from lora_ops.registry.report_lacks import lacks
from lora_ops.settings.registry import EvidenceSettings

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
PEOPLE = [
    {"id": who, "name": who, "email": f"{who}@example.com", "logins": [f"{who}.x"], "roles": ["approver"]}
    for who in ("eve", "dana", "ana")
]
TEAM = Team.model_validate(
    {
        "team": "Payments",
        "contacts": ["a@example.com"],
        "escalation": ["a@example.com"],
        "review_cadence_days": 90,
        "people": PEOPLE,
    }
)
ABOUT = About("finance", "finance@1", "a" * 64, NOON - timedelta(days=2), NOON, 2, TEAM, "ana")
LEAST = EvidenceSettings(votes="file", policy="file")
Rows = list[dict[str, Any]]
Count = Callable[..., Any]


@pytest.fixture
def counted(tmp_path: Path) -> Count:
    """Count rows of one kind: `counted("policy", rows)` gives the document."""

    def counted_(kind: str, rows: Rows, about: About = ABOUT) -> object:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"adapter": "finance@1"} | row) + "\n" for row in rows))
        found = count(kind, about, path)
        assert found.source == path.read_bytes()
        return found.document

    return counted_


def policy(prompts: int = 30, failed: int = 0, check: str = "no-advice") -> Rows:
    return [{"check": check, "prompt": f"p{i}", "passed": i >= failed} for i in range(prompts)]


def votes(pairs: int, vote: str = "adapter", people: tuple[str, ...] = ("eve", "dana")) -> Rows:
    return [{"pair": f"{vote}{i}", "annotator": who, "vote": vote} for i in range(pairs) for who in people]


def traffic(requests: int = 100, hours: float = 24, errors: int = 0, **more: object) -> Rows:
    begin, step = NOON - timedelta(hours=hours), timedelta(hours=hours) / max(requests - 1, 1)
    return [
        {"time": (begin + i * step).isoformat(), "status": 503 if i < errors else 200} | more
        for i in range(requests)
    ]


def test_row_of_other_content_is_refused(counted: Count) -> None:
    """Another registry gives `finance@1` to other content; its rows passed for this version's."""
    mine, theirs = {"digest": "a" * 64}, {"digest": "b" * 64}
    for kind, rows in (("policy", policy(30)), ("human_evaluation", votes(3))):
        with pytest.raises(
            LoraOpsError, match=r"line 1 is about a finance@1 of other content \(digest 'bbbbbb"
        ):
            counted(kind, [row | theirs for row in rows])
        assert counted(kind, [row | mine for row in rows]).unbound == 0


def test_rows_of_unnamed_content_are_counted_apart(counted: Count) -> None:
    """Releases before this one asked for no digest."""
    bound = {"digest": "a" * 64}
    assert counted("policy", [policy(1)[0] | bound, *policy(30)[1:]]).unbound == 29
    assert counted("human_evaluation", votes(3)).unbound == 6
    assert counted("canary", traffic(100)).unbound == 100
    assert counted("canary", traffic(100, **bound)).unbound == 0


def test_document_names_content_maker_time_and_source(counted: Count, tmp_path: Path) -> None:
    document = counted("policy", policy())
    assert (document.tenant, document.adapter, document.content_digest) == ("finance", "finance@1", "a" * 64)
    assert document.made_by.startswith("lora-ops ") and document.made_at == NOON
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert document.source.sha256 == sha256_bytes(content) and document.source.bytes == len(content)
    assert DOCUMENT.validate_json(document.to_json()) == document


def test_policy_rows_are_counted_by_check(counted: Count) -> None:
    document = counted("policy", policy(30) + policy(40, failed=2, check="cards"))
    assert isinstance(document, PolicyEvidence)
    assert document.checks == [
        PolicyCheck(name="no-advice", passed=True, prompts=30, failed=0),
        PolicyCheck(name="cards", passed=False, prompts=40, failed=2),
    ]


def test_votes_are_counted_by_the_majority_of_each_pair(counted: Count) -> None:
    rows = votes(3) + votes(2, "base") + votes(1, "same") + votes(4, people=("eve",))[3:]
    rows += [
        {"pair": "x", "annotator": who, "vote": vote} for who, vote in (("eve", "adapter"), ("dana", "base"))
    ]
    document = counted("human_evaluation", rows)
    assert isinstance(document, HumanEvidence)
    assert (document.annotators, document.pairs, document.too_few_votes) == (2, 7, 1)
    assert (document.adapter_better, document.same, document.base_better) == (3, 2, 2)


def test_requests_since_the_stage_began_are_counted(counted: Count) -> None:
    rows = traffic(10, hours=24, errors=1) + traffic(5, hours=1, better="production")
    rows += [{"time": (NOON - timedelta(days=3)).isoformat(), "status": 200}]
    rows += [{"time": NOON.isoformat(), "status": 200, "adapter": "finance@2"}]
    document = counted("canary", rows)
    assert isinstance(document, TrafficEvidence)
    assert (document.requests, document.errors, document.production_better) == (15, 1, 5)
    assert document.hours == pytest.approx(24 * 8 / 9)  # the first one failed


def test_a_gateways_event_log_is_counted_without_other_tenants(tmp_path: Path) -> None:
    one = {"time": NOON.isoformat(), "status": 200}
    events = [one | {"adapter": f"finance@{i % 2 + 1}", "id": str(i)} for i in range(8)]
    lines = [json.dumps(one) for one in events]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:4]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[4:]) + '\n{"adapter": "finance@1", "ti')
    document, source = count("shadow", ABOUT, tmp_path)
    assert isinstance(document, TrafficEvidence)
    assert (document.requests, document.kind) == (4, "shadow")
    assert b"finance@2" not in source


def test_text_is_kept_with_its_length(tmp_path: Path) -> None:
    path = tmp_path / "incident.md"
    path.write_text("# It leaks\n\nIt repeated a card number.\n")
    document = count("incident", ABOUT, path).document
    assert isinstance(document, TextEvidence)
    assert document.characters == 30


@pytest.mark.parametrize("kind", ["policy", "human_evaluation", "shadow", "canary", "incident", "review"])
@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_an_empty_file_is_no_evidence(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / "empty").write_bytes(content)
    with pytest.raises(LoraOpsError, match="is empty: an empty file is no evidence"):
        count(kind, ABOUT, tmp_path / "empty")
    with pytest.raises(LoraOpsError, match="There is no file"):
        count(kind, ABOUT, tmp_path / "none")


@pytest.mark.parametrize("kind", ["policy", "human_evaluation", "shadow", "canary"])
def test_free_text_is_no_row(tmp_path: Path, kind: str) -> None:
    (tmp_path / "page.md").write_text("No worse than what serves, in 24 hours of mirrored traffic.\n")
    with pytest.raises(LoraOpsError, match=f"page.md, line 1: .*evidence of kind '{kind}' is a file with one"):
        count(kind, ABOUT, tmp_path / "page.md")


def test_a_word_is_no_incident(tmp_path: Path) -> None:
    (tmp_path / "note.md").write_text("# oops\n")
    with pytest.raises(LoraOpsError, match="note.md has 4 letters and digits to read: evidence of kind"):
        count("incident", ABOUT, tmp_path / "note.md")


@pytest.mark.parametrize("content", ["\0" * 100, "\u200b" * 100, "\u3164" * 100, "-" * 100, "\x1b[0m\n" * 9])
def test_a_text_of_nothing_to_read_is_no_incident(tmp_path: Path, content: str) -> None:
    (tmp_path / "note.md").write_text(content)
    with pytest.raises(
        LoraOpsError, match=r"note.md has \d+ letters and digits to read: evidence of kind 'review' needs"
    ):
        count("review", ABOUT, tmp_path / "note.md")


def test_bytes_of_no_known_document_are_no_incident(tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(b"\xff" * 100)
    with pytest.raises(LoraOpsError, match=r"note is no text in UTF-8 \(byte 0\), no picture, no PDF"):
        count("incident", ABOUT, tmp_path / "note")


@pytest.mark.parametrize(
    ("kind", "rows", "says"),
    [
        ("policy", [{"passed": True, "prompts": 40, "failed": 0}], "line 1: check: Field required"),
        ("policy", [{"check": "a", "prompt": "p", "passed": "yes"}], "line 1: passed: .*valid boolean"),
        ("policy", policy(2) + policy(1), "line 3: check 'no-advice' has this prompt already"),
        ("policy", [policy(1)[0] | {"adapter": "finance@2"}], "line 1 is about finance@2, not finance@1"),
        ("policy", [policy(1)[0] | {"check": "\u200b"}], "line 1: 'check' has no visible character"),
        ("policy", [policy(1)[0] | {"prompt": "\u200b"}], "line 1: 'prompt' has no visible character"),
        ("human_evaluation", [votes(1)[0] | {"pair": "\ufeff"}], "line 1: 'pair' has no visible character"),
        ("human_evaluation", votes(1) + votes(1), "line 3: eve has judged pair adapter0 already"),
        ("human_evaluation", [votes(1)[0] | {"vote": "mine"}], "line 1: vote: "),
        ("human_evaluation", [votes(1)[0] | {"adapter": "media@1"}], "is about media@1, not finance@1"),
        ("shadow", [{"time": "2026-03-02T11:00:00", "status": 200}], "line 1: time: .*timezone"),
        (
            "shadow",
            [{"time": "2026-03-03T11:00:00Z", "status": 200}],
            "line 1: 2026-03-03T11.* not come yet",
        ),
        (
            "canary",
            [traffic(1)[0] | {"adapter": "media@1"}],
            "no request to finance@1 that was answered or failed since it entered",
        ),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(counted: Count, kind: str, rows: Rows, says: str) -> None:
    with pytest.raises(LoraOpsError, match=says):
        counted(kind, rows)


def test_a_row_that_says_a_thing_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(
        '{"adapter": "finance@1", "pair": "1", "annotator": "eve", "vote": "base", "vote": "same"}\n'
    )
    with pytest.raises(LoraOpsError, match="line 1: it has 'vote' twice; evidence of kind"):
        count("human_evaluation", ABOUT, path)


@pytest.mark.parametrize(
    ("kind", "row", "again"),
    [
        ("policy", policy(1)[0], {"prompt": "P\u200b0 "}),
        ("policy", policy(1)[0], {"prompt": "p\x000\x1b"}),
        ("policy", policy(1)[0], {"check": "NO-ADVICE", "prompt": "\uff500"}),
        ("human_evaluation", votes(1)[0], {"annotator": "EVE@example.com"}),
        ("human_evaluation", votes(1)[0], {"annotator": "eve.x", "pair": "Adapter0\ufeff"}),
    ],
)
def test_the_same_in_another_spelling_counts_once(
    counted: Count, kind: str, row: dict[str, Any], again: dict[str, str]
) -> None:
    with pytest.raises(LoraOpsError, match="line 2: .*already"):
        counted(kind, [row, row | again])


def test_only_named_people_vote_and_never_the_author(counted: Count) -> None:
    document = counted("human_evaluation", votes(3, people=("eve", "ana", "a login", "ana.x")))
    assert (document.annotators, document.pairs, document.other_votes) == (1, 0, 9)
    with pytest.raises(LoraOpsError, match="has no vote of anybody .* the votes of eve, dana count"):
        counted("human_evaluation", votes(3, people=("lea", "tom")))


def test_a_request_counts_once(counted: Count) -> None:
    rows = [row | {"request_id": f"r{i}", "id": f"e{i}"} for i, row in enumerate(traffic(50))]
    document = counted("canary", rows * 2 + [rows[0] | {"id": "new"}, rows[1] | {"request_id": "new"}])
    assert (document.requests, document.left_out) == (50, 52)
    assert counted("canary", traffic(50) * 3).requests == 50


def test_a_refused_request_is_no_answer(counted: Count) -> None:
    refused = [row | {"status": 401 + i % 30} for i, row in enumerate(traffic(90, hours=40))]
    document = counted("canary", refused + traffic(10, hours=2, errors=1))
    assert (document.requests, document.answered, document.errors, document.left_out) == (10, 9, 1, 90)
    assert document.hours < 2
    with pytest.raises(LoraOpsError, match="no request to finance@1 that was answered or failed"):
        counted("canary", refused)


def test_requests_to_other_content_of_that_name_do_not_count(counted: Count, tmp_path: Path) -> None:
    mine, other = traffic(3, digest="a" * 64), traffic(7, hours=2, digest="b" * 64)
    assert counted("canary", mine + other).requests == 3
    lines = [json.dumps({"adapter": "finance@1"} | row) for row in [*mine, *other]]
    (tmp_path / "log").mkdir()
    (tmp_path / "log/events.jsonl").write_text("\n".join(lines))
    assert count("canary", ABOUT, tmp_path / "log").source.count(b"finance@1") == 3


def test_a_version_that_was_never_in_canary_has_no_requests(counted: Count) -> None:
    with pytest.raises(LoraOpsError, match="finance@1 has not been in 'canary'"):
        counted("canary", traffic(), ABOUT._replace(since=None))


@pytest.mark.parametrize(
    ("kind", "rows", "lacking"),
    [
        ("policy", policy(30), ""),
        ("policy", policy(29), r"at least 30 prompts a check \(no-advice has 29\)"),
        ("policy", policy(40, failed=2), r"without a failure \(no-advice fails 2 of 40 prompts\)"),
        ("human_evaluation", votes(20), ""),
        ("human_evaluation", votes(10) + votes(10, "base"), ""),
        ("human_evaluation", votes(19), "at least 20 pairs, each judged by 2 people .it has 19"),
        ("human_evaluation", votes(20, people=("eve",)), "it has 0, and 20 that fewer than 2 judged"),
        ("human_evaluation", votes(9) + votes(11, "base"), "better in 9 of 20 pairs, its base in 11"),
        ("human_evaluation", votes(20, "same"), "in which somebody prefers an answer"),
        ("shadow", traffic(), ""),
        ("shadow", traffic(99), "at least 100 requests in 24 hours .it has 99 answered in 24.0"),
        ("canary", traffic(hours=23.9), "at least 100 requests in 24 hours .it has 100 answered in 23.9"),
        ("canary", traffic(101, hours=25, errors=1), ""),
        ("canary", traffic(102, hours=25, errors=2), "a canary report with at most 1.0% errors .2 of 102"),
        ("canary", traffic(100, errors=1), "at least 100 requests in 24 hours .it has 99 answered"),
        ("shadow", traffic(better="same"), ""),
        ("shadow", traffic(better="production"), "that production does not win"),
    ],
)
def test_what_a_step_needs_has_a_minimum(counted: Count, kind: str, rows: Rows, lacking: str) -> None:
    found = list(lacks(counted(kind, rows), LEAST))
    if lacking:
        assert len(found) == 1
        with pytest.raises(LoraOpsError, match=lacking):
            raise LoraOpsError(found[0])
    else:
        assert found == []


def test_votes_counted_by_a_lower_rule_do_not_pass_a_higher_one(counted: Count) -> None:
    document = counted("human_evaluation", votes(20, people=("eve",)), ABOUT._replace(votes_needed=1))
    assert list(lacks(document, LEAST.model_copy(update={"annotators": 1}))) == []
    assert len(list(lacks(document, LEAST))) == 1
