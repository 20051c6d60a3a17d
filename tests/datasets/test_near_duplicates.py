"""Rows that are nearly alike across splits are found, named, and counted against a limit."""

import pandas as pd
import pytest

from lora_ops.datasets.near_duplicates import (
    check_near_duplicates,
    near_duplicate_warnings,
    near_duplicates,
)
from lora_ops.settings.data import DataSettings


def settings(**contract: object) -> DataSettings:
    rows = {"train": 10, "validation": 5, "test": 5}
    return DataSettings.model_validate(
        {"source": "rows.csv", "labels": ["a", "b"], "rows": rows, "contract": contract}
    )


def split(**texts: str) -> pd.DataFrame:
    return pd.DataFrame({"id": list(texts), "text": list(texts.values())})


CHOSEN = {
    "train": split(t1="How do I reset the main pump?", t2="Where is the invoice of last year?"),
    "validation": split(v1="who are you"),
    "test": split(s1="How do I reset the main pumps?", s2="When does the shop open on Sundays?", s3="x"),
}


def test_near_duplicates_agree_with_jaccard_by_hand() -> None:
    """Every pair of some real-looking texts, whatever the size of a block is."""
    texts = [
        f"{kind} hotel {city}" for kind in ("Grand", "Grande", "Small") for city in ("Berlin", "Bern", "Rome")
    ]

    def pieces(text: str) -> set[str]:
        padded = f" {text.lower()} "
        return {padded[place : place + 4] for place in range(len(padded) - 3)}

    found = {pair.held_out: pair.similarity for pair in near_duplicates(texts[:5], texts[5:])}
    for place, text in enumerate(texts[:5]):
        best = max(len(pieces(text) & pieces(one)) / len(pieces(text) | pieces(one)) for one in texts[5:])
        assert found.get(place) == (pytest.approx(best) if best >= 0.7 else None)


def test_near_duplicates_in_small_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = [f"text number {n}" for n in range(30)], [f"text number {n + 7}" for n in range(11)]
    whole = near_duplicates(left, right)
    monkeypatch.setattr("lora_ops.datasets.near_duplicates.BLOCK", 25)
    assert near_duplicates(left, right) == whole != []


def test_check_names_near_duplicates_and_passes_without_a_limit() -> None:
    check = check_near_duplicates(CHOSEN, settings())
    assert check.success and check.failed_count == 1
    assert check.failed_rows == ["row s1: 0.84 like row t1 'How do I reset the main pump?'"]


def test_many_near_duplicates_are_warned_of_without_a_limit() -> None:
    (warning,) = near_duplicate_warnings(check_near_duplicates(CHOSEN, settings()), CHOSEN, settings())
    assert warning.startswith("1 of 4 held-out rows are nearly a training row")
    limited = settings(max_near_duplicates=0.5)
    assert near_duplicate_warnings(check_near_duplicates(CHOSEN, limited), CHOSEN, limited) == []
    few = CHOSEN | {"validation": split(**{f"v{n}": f"{n}{n}{n}{n} is a number" for n in range(30)})}
    assert near_duplicate_warnings(check_near_duplicates(few, settings()), few, settings()) == []


def test_check_fails_above_the_limit() -> None:
    assert check_near_duplicates(CHOSEN, settings(max_near_duplicates=0.25)).success
    check = check_near_duplicates(CHOSEN, settings(max_near_duplicates=0.1))
    assert not check.success and check.setting == "data.contract.max_near_duplicates"


def test_near_duplicates_of_nothing_are_none() -> None:
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == []
    assert [pair.similarity for pair in near_duplicates(["a"], ["A"])] == [1.0]
