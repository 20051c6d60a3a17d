"""Splits share no group and no wording, whatever the rows are."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.datasets.prepare import candidate_rows, prepare
from lora_ops.datasets.source import read_source
from lora_ops.datasets.split import SPLITS, membership, sample, split_by_group, thin_labels
from lora_ops.hashing import sha256_text
from lora_ops.loading import load_tokenizer
from lora_ops.records.example import read_split
from lora_ops.settings.data import DataSettings, SplitRows
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings

ROWS = SplitRows(train=70, validation=10, test=20)


@given(groups=st.lists(st.sampled_from([f"g{n}" for n in range(40)]), min_size=1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_group_is_in_exactly_one_split_and_the_seed_decides_which(groups: list[str], seed: int) -> None:
    assigned = split_by_group(groups, ROWS, seed)
    assert set(assigned) == set(groups)
    assert set(assigned.values()) <= set(SPLITS)
    assert assigned == split_by_group(list(reversed(groups)), ROWS, seed)


def test_split_shares_follow_the_wanted_rows() -> None:
    groups = [f"g{n}" for n in range(2000)]
    shares = pd.Series(split_by_group(groups, ROWS, 7)).value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.7, abs=0.03)
    assert shares["validation"] == pytest.approx(0.1, abs=0.03)
    assert shares["test"] == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_split_three_groups_are_enough_for_three_splits(seed: int) -> None:
    assert set(split_by_group(["a", "b", "c"], ROWS, seed).values()) == set(SPLITS)


@pytest.mark.parametrize("tenant", load_settings(find_root()).tenants)
def test_split_one_more_group_moves_no_other_group(tenant: str) -> None:
    """The shipped data: each of 20 new groups takes its own place and leaves every other group where it was."""
    data = load_settings(find_root()).tenants[tenant].data
    frame, _ = read_source(data, find_root(), find_root() / "data/raw")
    groups = candidate_rows(frame, data)["group"].tolist()
    before = split_by_group(groups, data.rows, data.seed)
    for number in range(20):
        after = split_by_group([*groups, f"a new group {number}"], data.rows, data.seed)
        assert {name: after[name] for name in before} == before


def test_split_trains_on_a_group_that_was_moved() -> None:
    """Reviewers corrected its rows; no other group changes its split."""
    frame = pd.DataFrame(
        {"text": [f"row {n}" for n in range(200)], "label": "a", "code": [str(n // 4) for n in range(200)]}
    )
    data = DataSettings(source="rows.csv", group="code", rows=ROWS, task="text")
    before = candidate_rows(frame, data)
    moved = before[before["split"] == "test"]["group"].iloc[0]
    after = candidate_rows(frame, data.model_copy(update={"moved_groups": (moved,)}))
    assert set(after[after["group"] == moved]["split"]) == {"train"}
    others = before["group"] != moved
    assert (after[others]["split"] == before[others]["split"]).all()


@pytest.mark.parametrize("tenant", load_settings(find_root()).tenants)
def test_split_without_the_last_row_moves_only_that_row(tenant: str) -> None:
    """The next row of its split (for a balanced one: of its label) may come in where it was."""
    data = load_settings(find_root()).tenants[tenant].data
    frame, _ = read_source(data, find_root(), find_root() / "data/raw")
    whole, shorter = candidate_rows(frame, data), candidate_rows(frame.iloc[:-1], data)
    last = whole["text"].iloc[-1]
    for name in SPLITS:
        kept = [
            set(sample(rows[rows["split"] == name], 100, balance=data.balance, seed=data.seed)["text"])
            for rows in (whole, shorter)
        ]
        assert kept[0] - kept[1] <= {last}
        assert len(kept[1] - kept[0]) <= 1


def test_sample_does_not_depend_on_the_order_of_a_source() -> None:
    frame = pd.DataFrame({"text": [f"text {n}" for n in range(60)], "target": ["a", "b", "c"] * 20})
    for balance in (False, True):
        chosen = sample(frame, 20, balance=balance, seed=1)["text"].tolist()
        assert sample(frame.iloc[::-1], 20, balance=balance, seed=1)["text"].tolist() == chosen
        assert sample(frame, 20, balance=balance, seed=2)["text"].tolist() != chosen


def test_sample_balanced_takes_labels_in_turn() -> None:
    frame = pd.DataFrame({"text": [f"text {n}" for n in range(100)], "target": ["common"] * 90 + ["rare"] * 10})
    assert sample(frame, 20, balance=True, seed=1)["target"].value_counts().to_dict() == {
        "common": 10,
        "rare": 10,
    }
    assert len(sample(frame, 500, balance=True, seed=1)) == 100


def test_membership_counts_the_rows_of_each_group() -> None:
    splits = {
        "train": pd.DataFrame({"group": ["5411", "5411", "7011"]}),
        "test": pd.DataFrame({"group": ["4511"]}),
    }
    rows = {(row.split, row.group_sha256): row.rows for row in membership(splits).itertuples()}
    assert rows == {
        ("train", sha256_text("5411")): 2,
        ("train", sha256_text("7011")): 1,
        ("test", sha256_text("4511")): 1,
    }


def test_thin_labels_are_hardly_trained_or_never_tested() -> None:
    splits = {
        "train": pd.DataFrame({"target": ["a"] * 9 + ["b"] * 2 + ["c"] * 9}),
        "validation": pd.DataFrame({"target": ["a"]}),
        "test": pd.DataFrame({"target": ["a", "b", "d"]}),
    }
    splits["train"] = pd.concat([splits["train"], pd.DataFrame({"target": ["d"] * 9})])
    assert thin_labels(splits, ["a", "b", "c", "d"], 5) == [
        "label 'b' is thin: 2 train, 0 validation, 1 test rows",
        "label 'c' is thin: 9 train, 0 validation, 0 test rows",
        "label 'd' is thin: 9 train, 0 validation, 1 test rows",
    ]


@pytest.mark.parametrize("tenant", load_settings(find_root()).tenants)
def test_no_group_and_no_wording_of_the_real_test_split_is_in_training(tenant, tiny_base, tmp_path) -> None:
    root = find_root()
    data = load_settings(root).tenants[tenant].data
    data = data.model_copy(update={"contract": data.contract.model_copy(update={"max_tokens": 2000})})
    prepare(tenant, data, load_tokenizer(tiny_base), "0" * 64, tmp_path / tenant, root, root / "data/raw")
    train, test = (read_split(tmp_path / tenant, split) for split in ("train", "test"))
    assert 0 < len(test) <= data.rows.test
    assert not {row.group for row in train} & {row.group for row in test}
    assert not {row.text.lower() for row in train} & {row.text.lower() for row in test}
    assert data.task == "text" or {row.target for row in train} <= set(data.labels)
    listed = pd.read_csv(tmp_path / tenant / "membership.csv").groupby("split")["rows"].sum()
    assert listed["train"] == len(train) and listed["test"] == len(test)


def test_prepare_balances_training_and_not_the_test_split(tiny_base, tmp_path) -> None:
    """Media: 55, 28 and 17 in a hundred rows of the source are neutral, negative and positive."""
    root = find_root()
    data = load_settings(root).tenants["media"].data
    data = data.model_copy(update={"contract": data.contract.model_copy(update={"max_tokens": 2000})})
    prepare("media", data, load_tokenizer(tiny_base), "0" * 64, tmp_path / "media", root, root / "data/raw")
    shares = {
        split: pd.Series([row.target for row in read_split(tmp_path / "media", split)]).value_counts(True)
        for split in ("train", "test")
    }
    assert shares["train"].to_list() == pytest.approx([1 / 3] * 3)
    assert shares["test"]["neutral"] > 0.45 and shares["test"]["positive"] < 0.25


def test_rows_without_a_group_column_are_grouped_by_their_wording() -> None:
    settings = DataSettings(source="rows.csv", task="text", rows=ROWS)
    frame = pd.DataFrame({"text": ["Same", "same", "other"], "label": ["a", "a", "b"]})
    rows = candidate_rows(frame, settings)
    assert rows["group"].tolist() == ["same", "same", "other"]
    assert rows["split"].iloc[0] == rows["split"].iloc[1]
