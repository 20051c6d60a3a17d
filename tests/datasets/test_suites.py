"""Suites in great-expectations' own JSON: the generated one, a tenant's own, and both together."""

import json
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
import pytest

from lora_ops.datasets import own_patterns
from lora_ops.datasets.contract import check_contract, numbers_typed
from lora_ops.datasets.prepare import check_rows, prepare
from lora_ops.datasets.suites import default_suite, own_checks, read_own_suite
from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_tokenizer
from lora_ops.paths import SUITE
from lora_ops.records.data import Check, DataRecord, SourceRecord
from lora_ops.settings.data import DataSettings


def settings(**contract: float) -> DataSettings:
    return DataSettings.model_validate(
        {
            "source": "rows.csv",
            "labels": ["a", "b"],
            "rows": {"train": 60, "validation": 20, "test": 20},
            "contract": {"min_rows": 10} | contract,
        }
    )


def source(rows: int = 100, share: float = 0.5) -> pd.DataFrame:
    """Rows with a price from 0 up, a code with leading zeros and a label; `share` of them is `a`."""
    return pd.DataFrame(
        {
            "text": [f"sentence {n}" for n in range(rows)],
            "label": ["a" if n < share * rows else "b" for n in range(rows)],
            "price": [str(n) for n in range(rows)],
            "code": [f"{n:04}" for n in range(rows)],
        },
        dtype=object,
    )


def own_suite(root: Path, *expectations: dict[str, Any]) -> dict[str, Any]:
    (root / "suites/data").mkdir(parents=True, exist_ok=True)
    (root / "suites/data/own.json").write_text(json.dumps({"expectations": expectations}))
    suite = read_own_suite("own", root)
    assert suite is not None
    return suite


def checked(frame: pd.DataFrame, own: dict[str, Any] | None = None, **options: Any) -> dict[str, Check]:
    contract = check_rows(frame, "own", settings(**options.pop("contract", {})), None, own, **options)[2]
    return {check.name: check for check in contract.checks}


def between(least: float, most: float, **kwargs: Any) -> dict[str, Any]:
    kwargs = {"column": "price", "min_value": least, "max_value": most, **kwargs}
    return {"type": "expect_column_values_to_be_between", "kwargs": kwargs, "meta": {"name": "price"}}


def test_prepare_writes_the_suite_that_great_expectations_loads(tmp_path: Path, tiny_base: Path) -> None:
    source().to_csv(tmp_path / "rows.csv", index=False)
    tokenizer = load_tokenizer(tiny_base)
    prepare("own", settings(), tokenizer, "0" * 64, tmp_path / "out", tmp_path, tmp_path)
    written = json.loads((tmp_path / "out" / SUITE).read_text())
    assert written == default_suite("own", settings(), tokens=True)
    loaded = gx.ExpectationSuite(**{key: written[key] for key in ("name", "expectations", "meta")})
    names = {each.meta["name"] for each in loaded.expectations}
    assert {"target is a known label", "no e-mail address in text", "no control token in text"} <= names


def test_own_checks_are_named_as_the_contract_does(tmp_path: Path) -> None:
    """A suite that was removed later left no trace of what had judged the data."""
    suite = own_suite(tmp_path, between(0, 97), between(0, 99), between(0, 97, mostly=0.95))
    named = own_checks(suite)
    assert len(named) == 3 and len(set(named.values())) == 3
    shown = [check.name for check in check_rows(source(), "own", settings(), None, suite)[2].checks]
    assert {name.partition(" #")[0] for name in named} <= set(shown)
    assert own_checks(None) == {}


def test_an_own_expectation_about_numbers_names_the_rows(tmp_path: Path) -> None:
    price = checked(source(), own_suite(tmp_path, between(0, 97)))["price"]
    assert (price.success, price.failed_count) == (False, 2)
    assert price.failed_rows == ["row 99: 98", "row 100: 99"]


def test_an_own_expectation_may_hold_for_most_rows(tmp_path: Path) -> None:
    price = checked(source(), own_suite(tmp_path, between(0, 97, mostly=0.95)))["price"]
    assert (price.success, price.failed_count, price.failed_rows) == (True, 2, [])


def test_an_own_expectation_about_text_sees_codes_as_written(tmp_path: Path) -> None:
    regex = {
        "type": "expect_column_values_to_match_regex",
        "kwargs": {"column": "code", "regex": "^0[0-9]{3}$"},
    }
    found = checked(source(), own_suite(tmp_path, regex))
    assert next(check for name, check in found.items() if "match_regex" in name).success


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("match_regex", {"regex": "^(a+)+$"}), ("not_match_regex_list", {"regex_list": ["b", "^(a|aa)+$"]})],
)
def test_own_patterns_that_never_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, wanted: dict[str, Any]
) -> None:
    """One repeat inside a repeat let the preparation of the data stand still for ever."""
    monkeypatch.setattr(own_patterns, "SECONDS", 2.0)
    found = {"type": f"expect_column_values_to_{kind}", "kwargs": {"column": "code", **wanted}}
    suite = own_suite(tmp_path, found)
    with pytest.raises(LoraOpsError, match=r"own.json: .* more than 2 s .* at last '\^\(a"):
        checked(source().assign(code="a" * 60 + "!"), suite)


def test_own_expectation_of_a_missing_column_fails(tmp_path: Path) -> None:
    price = checked(source(), own_suite(tmp_path, between(0, 9, column="prize")))["price"]
    assert not price.success and "prize" in price.failed_rows[0]


def test_two_expectations_of_one_type_on_one_column_count(tmp_path: Path) -> None:
    second = between(5, 99) | {"meta": {"name": "price again"}}
    found = checked(source(), own_suite(tmp_path, between(0, 97), second))
    assert (found["price"].failed_count, found["price again"].failed_count) == (2, 5)


def test_a_tenant_without_an_own_suite_has_none(tmp_path: Path) -> None:
    assert read_own_suite("own", tmp_path) is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "suites/data/own.json is not JSON"),
        ("[" * 200_000, "suites/data/own.json is not JSON: it is nested too deeply"),
        ("[]", "suites/data/own.json is no suite"),
        (
            '{"expectations": [{"type": "expect_nothing", "kwargs": {}}]}',
            "expectation 1 can't be used: .*nothing",
        ),
        ('{"expectations": [{"kwargs": {}}]}', "expectation 1 can't be used"),
        ('{"expectations": ["x"]}', "expectation 1 can't be used"),
        (
            '{"expectations": [{"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1, "b": 1}}]}',
            "expectation 1 can't be used: .*extra",
        ),
    ],
)
def test_a_file_that_is_no_suite_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "suites/data").mkdir(parents=True)
    (tmp_path / "suites/data/own.json").write_text(content)
    with pytest.raises(LoraOpsError, match=told):
        read_own_suite("own", tmp_path)


def test_numbers_are_typed_and_codes_are_not() -> None:
    frame = pd.DataFrame({"n": ["1", None, "-2.5e3"], "c": ["01", "1", "2"], "e": [None] * 3}, dtype=object)
    typed = numbers_typed(frame)
    assert typed["n"].tolist()[::2] == [1, -2500] and pd.isna(typed["n"][1])
    assert typed["c"].tolist() == ["01", "1", "2"]


def test_each_label_needs_its_declared_share() -> None:
    name = "each label has 20.0% of the rows"
    assert checked(source(), contract={"min_label_share": 0.2})[name].success
    check = checked(source(share=0.9), contract={"min_label_share": 0.2})[name]
    assert check.failed_rows == ["label 'b': 10.00% of the rows"]
    assert check.setting == "data.contract.min_label_share"


def previous(rows: int = 100, shares: dict[str, float] | None = None) -> DataRecord:
    return DataRecord(
        tenant="own",
        task="labels",
        source=SourceRecord(name="rows.csv", version="1", sha256="0" * 64),
        splits={},
        source_rows=rows,
        contract_success=True,
        base_model_sha256="0" * 64,
        label_shares=shares or {"a": 0.5, "b": 0.5},
    )


def test_data_like_the_last_versions_passes() -> None:
    checks = checked(source(), previous=previous())
    assert checks["the source lost at most 50% of its rows"].success
    assert checks["shares of labels moved by at most 25%"].success


def test_lost_rows_are_told_with_both_counts() -> None:
    check = checked(source(), previous=previous(rows=201))["the source lost at most 50% of its rows"]
    assert check.failed_rows == ["source: 100 rows, 201 before"]


def test_a_shift_of_labels_is_told_with_both_shares() -> None:
    check = checked(source(share=0.8), previous=previous())["shares of labels moved by at most 25%"]
    assert check.failed_rows == ["label 'a': 50.0% before, 80.0% now", "label 'b': 50.0% before, 20.0% now"]
    assert check.setting == "data.contract.max_label_shift"


def test_a_label_that_vanished_counts_as_shift() -> None:
    shares = {"a": 0.35, "b": 0.35, "gone": 0.3}
    assert not checked(source(), previous=previous(shares=shares))[
        "shares of labels moved by at most 25%"
    ].success


def test_the_contract_of_a_frame_alone_needs_no_source() -> None:
    frame = pd.DataFrame({"id": ["1"], "text": ["x"], "target": ["a"], "group": ["g"], "split": ["train"]})
    assert not check_contract(frame, "own", settings()).success
