"""Splits share no group and no wording, whatever the rows are."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.datasets.prepare import candidate_rows, prepare
from lora_ops.datasets.split import SPLITS, sample, split_by_group
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


def test_shares_follow_the_wanted_rows() -> None:
    groups = [f"g{n}" for n in range(1000)]
    counts = pd.Series(split_by_group(groups, ROWS, 7)).value_counts()
    assert counts.to_dict() == {"train": 700, "test": 200, "validation": 100}


def test_three_groups_are_enough_for_three_splits() -> None:
    assert set(split_by_group(["a", "b", "c"], ROWS, 0).values()) == set(SPLITS)


def test_balancing_takes_labels_in_turn() -> None:
    frame = pd.DataFrame({"target": ["common"] * 90 + ["rare"] * 10})
    assert sample(frame, 20, balance=True, seed=1)["target"].value_counts().to_dict() == {
        "common": 10,
        "rare": 10,
    }
    assert len(sample(frame, 500, balance=True, seed=1)) == 100


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


def test_rows_without_a_group_column_are_grouped_by_their_wording() -> None:
    settings = DataSettings(source="rows.csv", task="text", rows=ROWS)
    frame = pd.DataFrame({"text": ["Same", "same", "other"], "label": ["a", "a", "b"]})
    rows = candidate_rows(frame, settings)
    assert rows["group"].tolist() == ["same", "same", "other"]
    assert rows["split"].iloc[0] == rows["split"].iloc[1]
