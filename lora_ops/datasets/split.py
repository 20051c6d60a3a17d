"""Rows into train, validation and test by hash: a new row or group moves no other one into another split."""

from collections.abc import Iterable, Sequence

import pandas as pd

from lora_ops.hashing import sha256_text
from lora_ops.settings.data import SplitRows

SPLITS = ("train", "validation", "test")


def split_by_group(groups: Iterable[str], rows: SplitRows, seed: int) -> dict[str, str]:
    """Return the split of each group: what a test group says is never trained on.

    A group's hash decides, and the shares of `rows` are the thresholds, so no other group has a say. Only where
    a threshold would leave a split without any group, the groups of the nearest hashes go there.
    """
    total = rows.train + rows.validation + rows.test
    hashes = {name: _fraction(name, seed) for name in set(groups)}
    names = sorted(hashes, key=lambda name: hashes[name])
    test = sum(value < rows.test / total for value in hashes.values())
    held_out = sum(value < (rows.test + rows.validation) / total for value in hashes.values())
    if len(names) >= len(SPLITS):
        test = min(max(test, 1), len(names) - 2)
        held_out = min(max(held_out, test + 1), len(names) - 1)
    split = ["test"] * test + ["validation"] * (held_out - test) + ["train"] * (len(names) - held_out)
    return dict(zip(names, split, strict=True))


def sample(frame: pd.DataFrame, count: int, *, balance: bool, seed: int) -> pd.DataFrame:
    """Return at most `count` rows of `frame` (columns text, target), in the order of their hashes.

    With `balance` the labels take turns until one runs out, each with its rows in the order of their hashes.
    A new row takes its own place, and at most one row leaves for it.
    """
    # Not by row number: a row inserted at the top of a source would give every other one another place.
    ranked = frame.assign(rank=[_fraction(text, seed) for text in frame["text"].astype(str)])
    ranked = ranked.sort_values("rank", kind="stable")
    if balance:
        turns = ranked.groupby("target").cumcount()
        ranked = ranked.assign(turn=turns).sort_values(["turn", "rank"], kind="stable").head(count)
        ranked = ranked.drop(columns="turn").sort_values("rank", kind="stable")
    return ranked.head(count).drop(columns="rank")


def membership(splits: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row for each group of each split (columns split, group_sha256, rows).

    Two versions can be compared only on groups that neither was trained on; the digests tell which, not what.
    """
    counted = [
        {"split": name, "group_sha256": sha256_text(str(group)), "rows": count}
        for name, frame in splits.items()
        for group, count in frame["group"].value_counts().items()
    ]
    return pd.DataFrame(counted, columns=["split", "group_sha256", "rows"]).sort_values(
        ["split", "group_sha256"], ignore_index=True
    )


def thin_labels(splits: dict[str, pd.DataFrame], labels: Sequence[str], enough: int) -> list[str]:
    """Return a sentence for each label with fewer than `enough` rows to train on, or with no held-out row.

    Validation counts too: a run is chosen by it, and a label that it lacks has no say in that.
    """
    counts = {name: frame["target"].value_counts() for name, frame in splits.items()}
    thin = []
    for label in labels:
        rows = {name: int(count.get(label, 0)) for name, count in counts.items()}
        if rows["train"] < enough or not all(rows.values()):
            said = ", ".join(f"{count} {name}" for name, count in rows.items())
            thin.append(f"label '{label}' is thin: {said} rows")
    return thin


def _fraction(text: str, seed: int) -> float:
    """Return a number from 0 to 1 (excluded) that the text and the seed decide."""
    return int(sha256_text(f"{seed}:{text}")[:13], 16) / 16**13
