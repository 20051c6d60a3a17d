"""What the contract demands of splits as a whole: a row alone can't show it."""

from collections.abc import Mapping

import pandas as pd

from lora_ops.datasets.files import shorten
from lora_ops.records.data import Check
from lora_ops.settings.data import DataSettings


def check_splits(rows: pd.DataFrame, chosen: Mapping[str, pd.DataFrame], settings: DataSettings) -> list[Check]:
    """Check what training and evaluation need of the splits.

    Args:
        rows: every row that may be used, with columns target, group, split.
        chosen: of them, those that each split uses.
    """
    groups = rows["group"].nunique()
    few = f"{groups} groups are too few for three splits: add rows or choose another data.group"
    empty = [f"{name}: {few}" for name, frame in chosen.items() if frame.empty]
    checks = [_check("every split has rows", empty)]
    if settings.task == "labels":
        learnt = set(rows.loc[rows["split"] == "train", "target"].dropna())
        held_out = rows.loc[rows["split"] != "train", "target"].dropna().value_counts()
        unseen = [
            f"label {shorten(label)}: {count} rows, none of them in train"
            for label, count in held_out.items()
            if label not in learnt
        ]
        checks.append(_check("training sees every label of the held-out rows", unseen))
        used = sorted(chosen["train"]["target"].dropna().unique())
        alone = [f"train: {', '.join(map(shorten, used)) or 'no label'} alone"] if len(used) < 2 else []
        checks.append(_check("training sees at least two labels", alone))
    return checks


def _check(name: str, problems: list[str], setting: str | None = None) -> Check:
    return Check(
        name=name,
        success=not problems,
        failed_rows=problems[:20],
        failed_count=len(problems),
        setting=setting,
    )
