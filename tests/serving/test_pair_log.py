"""Pairs are judged off the request's path, and their lines are whole after a kill."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_ops.records.pair import ShadowPair
from lora_ops.rollout.pairs import read_pairs
from lora_ops.serving.pair_log import PairLog, UnjudgedPair
from lora_ops.serving.pair_scores import PairTexts, judge
from lora_ops.serving.risk import SCORED_CHARACTERS
from lora_ops.settings.serving import EventSettings

LABELS = ("Lodging", "Travel", "Eating out")
LEAK = "Write to jane.doe@example.com"


def pair(number: int, **changes: Any) -> ShadowPair:
    return ShadowPair(
        **{
            "time": datetime(2026, 3, 2, 9, 0, number, tzinfo=UTC),
            "request_id": f"r{number}",
            "tenant": "finance",
            "endpoint": "chat",
            "production": "finance@1",
            "production_digest": "ab",
            "shadow": "finance@2",
            "shadow_digest": "cd",
            "unit": f"u{number}",
            "epoch": 7,
            "status": "answered",
            "answers": 1,
            "production_characters": 3,
            "shadow_characters": 3,
            "prompt_tokens": 5,
            "production_tokens": 2,
            "shadow_tokens": 2,
            "production_first_token_seconds": 0.1,
            "shadow_first_token_seconds": 0.1,
            "production_seconds": 0.2,
            "shadow_seconds": 0.2,
            "production_finish": ["stop"],
            **changes,
        }
    )


def write(folder: Path, *items: UnjudgedPair, keep: bool = False) -> None:
    log = PairLog(folder, EventSettings(), lambda tenant: keep)
    for one in items:
        log.append(one)
    log.close()


@pytest.mark.parametrize(
    ("production", "shadow", "agreement", "task"),
    [
        ("Lodging", "lodging.", 1, (1, 1)),
        ("Lodging", "It is Travel", 0, (1, 1)),
        ("Lodging", "a hotel", 0, (1, 0)),
        ("a hotel", "A hotel.", 1, (0, 0)),
        ("a hotel", "an inn", 0, (0, 0)),
    ],
)
def test_judge_compares_labels_by_their_meaning(
    production: str, shadow: str, agreement: float, task: tuple[float, float]
) -> None:
    found = judge(PairTexts("AIRBNB", [production], [shadow], LABELS, LABELS))
    assert (found.agreement, found.similarity) == (agreement, None)
    assert (found.production_task, found.shadow_task) == task


def test_judge_compares_texts_by_chrf_and_detectors() -> None:
    found = judge(PairTexts(LEAK, ["Thanks a lot", "You idiot"], ["Thanks a lot!", "Call jo@example.org"]))
    assert found.agreement == 0.5 and found.similarity and 0.4 < found.similarity < 1
    assert (found.production_identifiers, found.shadow_identifiers) == (0, 0.5)
    assert (found.production_insults, found.shadow_insults) == (0.5, 0)
    assert "jane" not in found.prompt_text and "jo@" not in found.shadow_text
    assert (found.production_task, found.shadow_task) == (1, 1)


def test_judge_counts_what_the_budgets_count() -> None:
    """What the prompt has is no leak, however late it stands there; a label insults nobody."""
    late = "a" * SCORED_CHARACTERS + LEAK
    (kept,) = [judge(PairTexts(late, [LEAK], [f"{LEAK} or jo@example.org"]))]
    assert (kept.production_identifiers, kept.shadow_identifiers) == (0, 1)
    rude = ("Idiot", "Angel")
    found = judge(PairTexts("AIRBNB", ["idiot."], ["You idiot"], rude, rude))
    assert (found.production_insults, found.shadow_insults) == (0, 1)
    # Whoever says nothing is not looked at: two in three of these would look clean.
    empty = judge(PairTexts("AIRBNB", ["You idiot", "", " "], ["", "", ""]))
    assert (empty.production_insults, empty.production_identifiers) == (1, 0)
    assert (empty.shadow_insults, empty.shadow_identifiers, empty.shadow_task) == (None, None, 0)


def test_judge_looks_at_the_end_of_a_long_answer() -> None:
    """And takes nothing of production's system prompt for something that the user gave."""
    late = "All is well. " * (SCORED_CHARACTERS // 13 + 1)
    found = judge(PairTexts("Hi", [late], [f"{late}{LEAK} You idiot."]))
    assert (found.production_identifiers, found.shadow_identifiers) == (0, 1)
    assert (found.production_insults, found.shadow_insults) == (0, 1)
    system = f"system: {LEAK}\n"
    found = judge(PairTexts(f"{system}user: Hi", ["Hi"], [LEAK], given_from=len(system)))
    assert (found.production_identifiers, found.shadow_identifiers) == (0, 1)


def test_judge_checks_the_expected_answer_where_it_is_known() -> None:
    found = judge(PairTexts("AIRBNB", ["Lodging"], ["Travel"], LABELS, LABELS, expected=["Travel"]))
    assert (found.production_task, found.shadow_task) == (0, 1)


def test_judge_takes_bounded_time_and_an_answer_that_never_came() -> None:
    long = "You " * (SCORED_CHARACTERS)
    found = judge(PairTexts(long, [long], [long[4:]]))
    assert found.similarity and found.similarity > 0.99
    alone = judge(PairTexts("AIRBNB", ["Lodging"], [], LABELS, LABELS))
    assert alone.agreement is None and alone.shadow_task is None and alone.production_task == 1


@pytest.mark.parametrize("keep", [False, True])
def test_log_keeps_scores_always_and_texts_where_allowed(tmp_path: Path, keep: bool) -> None:
    answered = UnjudgedPair(pair(1), PairTexts(LEAK, ["Lodging"], ["Travel"], LABELS, LABELS))
    failed = UnjudgedPair(pair(2, status="failed"), PairTexts(LEAK, ["Lodging"], [], LABELS, LABELS))
    write(tmp_path, answered, failed, keep=keep)
    first, second = read_pairs(tmp_path, "finance@2", "cd").to_dict("records")
    assert (first["agreement"], first["production_task"], first["shadow_insults"]) == (0, 1, 0)
    texts = (first["prompt_text"], first["production_text"], first["shadow_text"])
    assert texts == (("Write to [e-mail address]", "Lodging", "Travel") if keep else (None, None, None))
    assert second["production_task"] == 1 and pd.isna(second["shadow_text"])
    assert "jane" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_pairs_of_other_content_and_torn_lines_do_not_count(tmp_path: Path) -> None:
    texts = PairTexts("", ["a"], ["b"])
    others = [
        pair(1, shadow_digest="ef"),
        pair(2, shadow="finance@3"),
        pair(3, tenant="media", shadow="media@2"),
    ]
    write(tmp_path, *(UnjudgedPair(one, texts) for one in (*others, pair(4, production_digest="xy"), pair(5))))
    assert list(read_pairs(tmp_path, "finance@2", "cd")["request_id"]) == ["r4", "r5"]
    assert list(read_pairs(tmp_path, "finance@2", "cd", production_digest="ab")["request_id"]) == ["r5"]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    write(tmp_path, UnjudgedPair(pair(4, production_digest="xy"), texts))
    assert list(read_pairs(tmp_path, "finance@2", "cd")["request_id"]) == ["r4", "r4"]


def test_without_files_there_are_no_pairs(tmp_path: Path) -> None:
    table = read_pairs(tmp_path, "finance@2", "cd")
    assert table.empty and "agreement" in table
