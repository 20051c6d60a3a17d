"""The data contract: each way to break it is found, and the rows are named."""

import pandas as pd
import pytest

from lora_ops.datasets.contract import check_contract, checks_table, failed_rows, require
from lora_ops.errors import LoraOpsError
from lora_ops.settings.data import DataSettings

SETTINGS = DataSettings.model_validate(
    {
        "source": "rows.csv",
        "labels": ["a", "b"],
        "rows": {"train": 7, "validation": 1, "test": 2},
        "contract": {"min_chars": 3, "max_chars": 30, "max_tokens": 20, "min_rows": 6},
    }
)


def good() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [str(n) for n in range(1, 7)],
            "text": ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"],
            "target": ["a", "b", "a", "b", "a", "b"],
            "group": ["g1", "g1", "g2", "g2", "g3", "g3"],
            "split": ["train", "train", "train", "train", "test", "test"],
            "tokens": [9] * 6,
            "control token in text": [None] * 6,
            "control token in target": [None] * 6,
        }
    )


def test_good_rows_pass_every_check() -> None:
    contract = check_contract(good(), "t", SETTINGS)
    require(contract)
    assert contract.success and contract.rows == 6
    assert len(contract.checks) >= 20


@pytest.mark.parametrize(
    ("column", "row", "value", "check", "named"),
    [
        ("target", 2, "c", "target is a known label", "row 3: 'c'"),
        ("target", 2, None, "target is present", "row 3"),
        ("target", 2, "", "target is not empty", "row 3"),
        ("target", 2, "a" * 31, "target has at most 30 characters", "row 3"),
        ("text", 0, "ab", "text has 3 to 30 characters", "row 1: 'ab'"),
        ("text", 1, "x" * 31, "text has 3 to 30 characters", "row 2"),
        ("text", 1, "Alpha", "no wording stands twice", "row 1: 'alpha'"),
        ("text", 4, " ALPHA", "no wording is in two splits", "row 5"),
        ("group", 4, "g1", "no group is in two splits", "row 5"),
        ("id", 1, "1", "row ids are unique", "row 1"),
        ("tokens", 5, 21, "prompt and answer fit 20 tokens", "row 6: 21"),
        ("text", 3, "mail jo@example.org", "no e-mail address in text", "row 4: 'mail [e-mail address]'"),
        ("text", 3, "call (212) 555-0147", "no phone number in text", "row 4"),
        ("text", 3, "ssn 078-05-1120", "no US social security number in text", "row 4"),
        ("text", 3, "card 4111 1111 1111 1111", "no payment card number in text", "row 4"),
        ("text", 3, "DE89370400440532013000", "no IBAN in text", "row 4"),
    ],
)
def test_a_broken_row_is_named(column: str, row: int, value: object, check: str, named: str) -> None:
    frame = good()
    frame.loc[row, column] = value  # type: ignore[call-overload]
    contract = check_contract(frame, "t", SETTINGS)
    failed = {c.name: c for c in contract.checks if not c.success}
    assert check in failed
    assert any(text.startswith(named) for text in failed[check].failed_rows)
    with pytest.raises(LoraOpsError, match="breaks its contract"):
        require(contract)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("text", "Alpha", r"Mend the rows\.$"),
        ("target", "c", r"Mend the rows or, where they are right, data\.labels in params\.yaml\.$"),
        ("tokens", 21, r"data\.contract\.max_tokens in params\.yaml\.$"),
    ],
)
def test_a_setting_is_named_only_where_one_would_help(column: str, value: object, told: str) -> None:
    frame = good()
    frame.loc[1, column] = value  # type: ignore[call-overload]
    with pytest.raises(LoraOpsError, match=told):
        require(check_contract(frame, "t", SETTINGS))


def test_too_few_rows_are_counted() -> None:
    contract = check_contract(good().head(4), "t", SETTINGS)
    assert [(c.name, c.failed_rows) for c in contract.checks if not c.success] == [
        ("at least 6 rows", ["there are 4"])
    ]


def test_identifiers_can_be_allowed_by_a_setting() -> None:
    frame = good()
    frame.loc[0, "text"] = "jo@example.org"
    limits = SETTINGS.contract.model_copy(update={"allow_pii": True})
    assert check_contract(frame, "t", SETTINGS.model_copy(update={"contract": limits})).success


def test_a_file_of_many_bad_rows_names_three_and_counts_the_rest() -> None:
    frame = good().assign(target="zzz")
    with pytest.raises(LoraOpsError, match=r"row 1: 'zzz'; row 2: 'zzz'; row 3: 'zzz' and 3 more"):
        require(check_contract(frame, "t", SETTINGS))


def test_a_huge_value_makes_no_huge_error() -> None:
    frame = good()
    frame.loc[0, "text"] = "x" * 1_500_000
    frame.loc[1, "target"] = "y" * 1_500_000
    contract = check_contract(frame, "t", SETTINGS)
    assert len(contract.to_json()) < 20_000
    with pytest.raises(LoraOpsError) as told:
        require(contract)
    assert len(str(told.value)) < 1200


def test_identifiers_in_many_rows_are_a_short_table() -> None:
    frame = pd.concat([good()] * 20, ignore_index=True)
    frame = frame.assign(
        id=[str(n) for n in range(len(frame))],
        text=[f"to jo{n}@example.org or (212) 555-{n:04}, ssn 078-05-{n + 1:04}" for n in range(len(frame))],
    )
    contract = check_contract(frame, "t", SETTINGS)
    table = failed_rows(contract)
    assert list(table.columns) == ["check", "row", "value"]
    assert (table["check"].value_counts() <= 5).all()
    assert table["value"].str.len().max() <= 80
    assert not table["value"].str.contains("example.org|555-|078-05").any()
    with pytest.raises(LoraOpsError) as told:
        require(contract)
    assert len(str(told.value)) < 1200


def test_the_table_of_checks_has_each_check_with_its_count() -> None:
    table = checks_table(check_contract(good().assign(target="zzz"), "t", SETTINGS)).set_index("check")
    assert tuple(table.loc["target is a known label"]) == ("FAILED", 6)
    assert tuple(table.loc["row ids are unique"]) == ("ok", 0)


@pytest.mark.parametrize("column", ["target", "group"])
def test_a_column_without_any_value_is_named(column: str) -> None:
    contract = check_contract(good().assign(**{column: None}), "t", SETTINGS)
    failed = {check.name: check for check in contract.checks if not check.success}
    assert failed[f"{column} is present"].failed_count == 6


def test_a_time_stamp_is_no_card_number() -> None:
    frame = good()
    frame.loc[0, "text"] = "at 1617176400000"
    assert check_contract(frame, "t", SETTINGS).success
