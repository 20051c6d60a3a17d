"""Held-out rows that say nearly what a training row says: being right about them shows nothing."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from lora_ops.datasets.files import shorten
from lora_ops.records.data import Check
from lora_ops.settings.data import DataSettings

# Of the pieces of four characters that two texts have, the share that both have (Jaccard): "HOTEL 12" and
# "HOTEL 13" are alike in this, "HOTEL" and "MOTEL" are not.
ALIKE = 0.7
PIECE = 4
SETTING = "data.contract.max_near_duplicates"
# Where no limit is set. So many answers known by heart can move a metric as far as the interval of 300 rows
# reaches. It warns and doesn't refuse: texts of a template, such as tickets, are alike by nature, and only the
# tenant knows whether their variants belong into one group.
WARNED_SHARE = 0.05
# How many similarities are in memory at a time, however many rows there are.
BLOCK = 5_000_000


class Pair(NamedTuple):
    """A held-out text, the training text that is most like it (by their places), and how alike they are."""

    held_out: int
    trained: int
    similarity: float


def near_duplicates(held_out: Sequence[str], trained: Sequence[str]) -> list[Pair]:
    """Return the held-out texts that are nearly a training text, each with the one most like it."""
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer

    pieces = HashingVectorizer(
        analyzer="char", ngram_range=(PIECE, PIECE), binary=True, norm=None, alternate_sign=False
    )
    if not held_out or not trained:
        return []
    # Texts shorter than a piece have none: padded, they have.
    left, right = (
        pieces.transform([f" {text} ".ljust(PIECE, "_") for text in texts]) for texts in (held_out, trained)
    )
    sizes = np.asarray(right.sum(axis=1)).ravel()
    found, rows = [], max(1, BLOCK // len(trained))
    for start in range(0, len(held_out), rows):
        block = left[start : start + rows]
        shared = (block @ right.T).toarray()  # (rows, trained)
        both = np.asarray(block.sum(axis=1)) + sizes - shared
        similarity = shared / np.maximum(both, 1)
        nearest = similarity.argmax(axis=1)
        for row, place in enumerate(nearest):
            if similarity[row, place] >= ALIKE:
                found.append(Pair(start + row, int(place), float(similarity[row, place])))
    return found


def check_near_duplicates(chosen: Mapping[str, pd.DataFrame], settings: DataSettings) -> Check:
    """Check how many held-out rows are nearly a training row, by `data.contract.max_near_duplicates`.

    Without a limit they are named and pass; `near_duplicate_warnings` says when they are many.

    Args:
        chosen: the rows that each split uses, with columns id and text.
    """
    limit = settings.contract.max_near_duplicates
    held_out = pd.concat([chosen["test"], chosen["validation"]])
    train = chosen["train"]
    pairs = near_duplicates(held_out["text"].astype(str).tolist(), train["text"].astype(str).tolist())
    ids, train_ids = held_out["id"].tolist(), train["id"].tolist()
    named = [
        f"row {ids[one.held_out]}: {one.similarity:.2f} like row {train_ids[one.trained]} "
        + shorten(train["text"].iloc[one.trained])
        for one in pairs[:20]
    ]
    allowed = "" if limit is None else f" (at most {limit:.0%})"
    return Check(
        name=f"held-out rows are no near-duplicates of training rows{allowed}",
        success=limit is None or len(pairs) <= limit * len(held_out),
        failed_rows=named,
        failed_count=len(pairs),
        setting=SETTING,
    )


def near_duplicate_warnings(
    check: Check, chosen: Mapping[str, pd.DataFrame], settings: DataSettings
) -> list[str]:
    """Return a warning if a tenant without a limit has many near-duplicates, by `check_near_duplicates`."""
    rows = len(chosen["test"]) + len(chosen["validation"])
    if settings.contract.max_near_duplicates is not None or check.failed_count <= WARNED_SHARE * rows:
        return []
    return [
        f"{check.failed_count} of {rows} held-out rows are nearly a training row, so metrics on them show "
        f"memory too: keep variants in one split (data.group), or set a limit ({SETTING})"
    ]
