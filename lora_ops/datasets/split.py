"""Rows into train, validation and test by group: what a test group says is never trained on."""

import random
from collections.abc import Sequence

import pandas as pd

from lora_ops.settings.data import SplitRows

SPLITS = ("train", "validation", "test")


def split_by_group(groups: Sequence[str], rows: SplitRows, seed: int) -> dict[str, str]:
    """Which split each group belongs to.

    Groups are shuffled with the seed and dealt so that the splits' shares of rows follow `rows`. Every
    split gets at least one group if there are three.
    """
    sizes = pd.Series(list(groups)).value_counts()
    names = sorted(sizes.index)
    random.Random(seed).shuffle(names)
    wanted = {"test": rows.test, "validation": rows.validation, "train": rows.train}
    total = sum(wanted.values())
    filled = dict.fromkeys(wanted, 0)
    assigned: dict[str, str] = {}
    for name in names:
        # The split that is furthest below its share takes the next group.
        split = min(wanted, key=lambda s: filled[s] / wanted[s] * total)
        assigned[name] = split
        filled[split] += int(sizes[name])
    return assigned


def sample(frame: pd.DataFrame, count: int, *, balance: bool, seed: int) -> pd.DataFrame:
    """At most `count` rows of `frame`, shuffled; with `balance`, labels in turn until one runs out."""
    shuffled = frame.sample(frac=1, random_state=seed)
    if balance:
        turn = shuffled.groupby("target").cumcount()
        shuffled = shuffled.iloc[turn.argsort(kind="stable")].head(count).sample(frac=1, random_state=seed)
    return shuffled.head(count)
