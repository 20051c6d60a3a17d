"""What the contract demands of splits as a whole: a row alone can't show it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lora_ops.datasets.files import shorten
from lora_ops.prompts import ControlTokens
from lora_ops.records.data import Check, DataRecord
from lora_ops.settings.data import DataSettings

# A label's own word is good evidence now and then; where it is usual, nothing has to be learnt.
ANSWERED_SHARE = 0.2


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


def label_shares(rows: pd.DataFrame) -> dict[str, float]:
    """Return each label's share of the rows, the largest first."""
    shares = rows["target"].dropna().value_counts(normalize=True)
    return {str(label): round(float(share), 6) for label, share in shares.items()}


def check_shares(rows: pd.DataFrame, settings: DataSettings) -> list[Check]:
    """Check that each label has at least `data.contract.min_label_share` of the rows."""
    least = settings.contract.min_label_share
    if settings.task != "labels" or not least:
        return []
    shares = label_shares(rows)
    small = [
        f"label {shorten(label)}: {shares.get(label, 0):.2%} of the rows"
        for label in settings.labels
        if shares.get(label, 0) < least
    ]
    return [_check(f"each label has {least:.1%} of the rows", small, "data.contract.min_label_share")]


def check_previous(
    rows: pd.DataFrame, source_rows: int, previous: DataRecord, settings: DataSettings
) -> list[Check]:
    """Compare the data with that of the version registered last: rows lost, and the labels' shares.

    The shift of shares is their total variation: half the sum of the absolute differences, 0 to 1.
    """
    limits = settings.contract
    lost = max(0.0, 1 - source_rows / previous.source_rows) if previous.source_rows else 0.0
    told = f"source: {source_rows} rows, {previous.source_rows} before"
    fewer = [told] if lost > limits.max_rows_lost else []
    name = f"the source lost at most {limits.max_rows_lost:.0%} of its rows"
    checks = [_check(name, fewer, "data.contract.max_rows_lost")]
    if settings.task == "labels" and previous.label_shares is not None:
        before, now = previous.label_shares, label_shares(rows)
        moves = {label: now.get(label, 0) - before.get(label, 0) for label in {*before, *now}}
        shift = sum(map(abs, moves.values())) / 2
        moved = sorted(moves, key=lambda label: (-abs(moves[label]), label))[:5]
        moved_labels = [
            f"label {shorten(label)}: {before.get(label, 0):.1%} before, {now.get(label, 0):.1%} now"
            for label in moved
        ]
        name = f"shares of labels moved by at most {limits.max_label_shift:.0%}"
        within = shift <= limits.max_label_shift
        checks.append(_check(name, [] if within else moved_labels, "data.contract.max_label_shift"))
    return checks


def check_system(system: str, tokenizer: Any) -> Check:
    """Check that the system prompt holds no control token, as texts and targets must not."""
    control = ControlTokens(tokenizer)
    ids = tokenizer(system, add_special_tokens=False)["input_ids"]
    token = control.spelled(system) or control.hidden(system, ids)
    return _check("no control token in the system prompt", [f"system: {token}"] if token else [], "data.system")


def check_answers(rows: pd.DataFrame, tokenizer: Any, labels: Sequence[str], max_new_tokens: int) -> Check:
    """Check that each label can be answered whole within `evaluate.max_new_tokens`.

    Args:
        rows: with columns target and completion (the target and the token that ends the turn).
    """
    completions = rows[rows["target"].isin(labels)].drop_duplicates("target")
    lengths = {
        row.target: len(tokenizer(row.completion, add_special_tokens=False)["input_ids"])
        for row in completions.itertuples()
    }
    cut = [f"label {shorten(label)}: {size} tokens" for label, size in lengths.items() if size > max_new_tokens]
    return _check(f"each label fits {max_new_tokens} new tokens", cut, "evaluate.max_new_tokens")


def answered_warnings(chosen: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return a warning if the answer itself stands, as whole words, in many of the held-out texts.

    Args:
        chosen: the rows that each split uses, with columns text and target.
    """
    held_out = pd.concat([chosen["test"], chosen["validation"]])
    answered = sum(
        _holds(str(text), str(target))
        for text, target in zip(held_out["text"], held_out["target"], strict=True)
    )
    if answered <= ANSWERED_SHARE * len(held_out):
        return []
    return [
        f"the answer stands in the text of {answered} of {len(held_out)} held-out rows, so metrics on them "
        "show copying too: leave the column that holds it out of data.template or of the source"
    ]


def _holds(text: str, answer: str) -> bool:
    words = r"(?<!\w)" + re.escape(answer.strip().casefold()) + r"(?!\w)"
    return bool(answer.strip()) and re.search(words, text.casefold()) is not None


def _check(name: str, problems: list[str], setting: str | None = None) -> Check:
    return Check(
        name=name,
        success=not problems,
        failed_rows=problems[:20],
        failed_count=len(problems),
        setting=setting,
    )
