"""A tenant's prepared data: splits as JSONL, their record and the result of the contract, in one folder."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.datasets.checks import (
    answered_warnings,
    check_previous,
    check_shares,
    check_splits,
    check_system,
    label_shares,
)
from lora_ops.datasets.contract import check_contract
from lora_ops.datasets.near_duplicates import SETTING as NEAR_DUPLICATES
from lora_ops.datasets.near_duplicates import check_near_duplicates, near_duplicate_warnings
from lora_ops.datasets.source import read_source
from lora_ops.datasets.split import SPLITS, membership, sample, split_by_group, thin_labels
from lora_ops.datasets.suites import control_column, default_suite, own_checks, read_own_suite
from lora_ops.detectors.identifiers import find_identifiers, redact
from lora_ops.folders import replacing
from lora_ops.hashing import sha256_file
from lora_ops.paths import CONTRACT, DATA, MEMBERSHIP, PROMPT, SLICE, SLICES, SUITE
from lora_ops.prompts import ControlTokens, render_example
from lora_ops.records.data import (
    ContractRecord,
    DataRecord,
    IdentifiersRecord,
    PromptRecord,
    SplitRecord,
    read_previous,
)
from lora_ops.records.example import Example
from lora_ops.settings.data import DataSettings
from lora_ops.templates import fill_template


def candidate_rows(frame: pd.DataFrame, settings: DataSettings) -> pd.DataFrame:
    """Return every row of a source that may be used, and the split that it falls into.

    Where `data.on_pii` is drop, rows with direct identifiers are left out; where it is redact, their text and
    target are redacted before anything else is made of them.

    Returns:
        Columns id (row number in the source, from 1), text, target, group, split, redacted, and `slice.NAME`
        for each column of `data.bias_columns`.
    """
    rows = pd.DataFrame({"id": [str(number) for number in range(1, len(frame) + 1)]})
    filled = frame.fillna("").to_dict("records")
    rows["text"] = fill_template(settings.template, filled)
    target = frame[settings.target].reset_index(drop=True)
    rows["target"] = target.where(target.isna(), target.astype(str).str.strip())
    group = frame[settings.group].reset_index(drop=True) if settings.group else None
    for column in settings.bias_columns:
        rows[SLICE + column] = frame[column].reset_index(drop=True).fillna("").astype(str).str.strip()
    rows["redacted"] = False
    if settings.on_pii != "stop":
        said = rows["text"] + "\n" + rows["target"].fillna("").astype(str)
        rows["redacted"] = [bool(find_identifiers(text)) for text in said]
    if settings.on_pii == "redact":
        for column in ("text", "target"):
            there = rows["redacted"] & rows[column].notna()
            rows.loc[there, column] = [redact(text)[0] for text in rows.loc[there, column]]
    if group is None:
        group = rows["text"].str.lower()
    rows["group"] = group.where(group.isna(), group.astype(str))
    if settings.on_pii == "drop":
        rows = rows[~rows["redacted"]].reset_index(drop=True)
    split_of = split_by_group(rows["group"].astype(str).tolist(), settings.rows, settings.seed)
    rows["split"] = rows["group"].astype(str).map(split_of)
    # Reviewers corrected some of their rows: nobody may test with these groups any more.
    rows.loc[rows["group"].astype(str).isin(settings.moved_groups), "split"] = "train"
    return rows


def identifiers_of(rows: pd.DataFrame, source_rows: int, settings: DataSettings) -> IdentifiersRecord | None:
    """Return how many rows `candidate_rows` left out or redacted, or None where it does neither."""
    if settings.on_pii == "stop":
        return None
    return IdentifiersRecord(dropped_rows=source_rows - len(rows), redacted_rows=int(rows["redacted"].sum()))


def choose_rows(rows: pd.DataFrame, settings: DataSettings) -> dict[str, pd.DataFrame]:
    """Return the rows of each split that are used, at most as many as `data.rows` says."""
    chosen = {}
    for name in SPLITS:
        # Held-out rows keep their natural shares: a balanced test would measure another mix.
        balance = settings.balance and settings.task == "labels" and name == "train"
        count = getattr(settings.rows, name)
        chosen[name] = sample(rows[rows["split"] == name], count, balance=balance, seed=settings.seed)
    return chosen


def with_prompts(rows: pd.DataFrame, tokenizer: Any, settings: DataSettings) -> pd.DataFrame:
    """Return `rows` with what the tokenizer makes of them.

    Columns are added: prompt, completion, tokens (of both together), and for text and target the first of the
    tokenizer's control tokens that it holds, else None.
    """
    pairs = [
        render_example(tokenizer, text, str(target), settings.system)
        for text, target in zip(rows["text"], rows["target"], strict=True)
    ]
    prompts, completions = [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
    whole = [prompt + completion for prompt, completion in pairs]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    rows = rows.assign(prompt=prompts, completion=completions, tokens=[len(one) for one in ids])
    everywhere, in_answers = ControlTokens(tokenizer), ControlTokens(tokenizer, in_answers=True)
    hidden = [everywhere.hidden(text, one) for text, one in zip(whole, ids, strict=True)]
    for column, control in (("text", everywhere), ("target", in_answers)):
        found = [
            control.spelled(str(cell)) or (_hidden(str(cell), control, tokenizer) if beyond else None)
            for cell, beyond in zip(rows[column], hidden, strict=True)
        ]
        rows[control_column(column)] = pd.Series(found, index=rows.index, dtype=object)
    return rows


def _hidden(text: str, control: ControlTokens, tokenizer: Any) -> str | None:
    return control.hidden(text, tokenizer(text, add_special_tokens=False)["input_ids"])


def prepare(
    tenant: str,
    settings: DataSettings,
    tokenizer: Any,
    base_model_sha256: str,
    target: Path,
    root: Path,
    raw: Path,
    base_files_sha256: str | None = None,
) -> tuple[DataRecord | None, ContractRecord]:
    """Write the splits, what is known of them, the prompts' common part and the contract into `target`.

    When the contract is broken only `contract.json` is written, so that no stage can use the data: the caller
    shows it and stops with `require`.

    Returns:
        The record of the data, None when the contract is broken, and the contract.

    Raises:
        LoraOpsError: the source can't be read.
    """
    frame, source = read_source(settings, root, raw)
    own, previous = read_own_suite(tenant, root), read_previous(tenant, root)
    rows, chosen, contract = check_rows(frame, tenant, settings, tokenizer, own, previous)
    suite = default_suite(tenant, settings, tokens=True)
    with replacing(target) as folder:
        (folder / CONTRACT).write_text(contract.to_json(), encoding="utf-8")
        (folder / SUITE).write_text(json.dumps(suite, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if not contract.success:
            return None, contract
        splits = {name: _write_split(folder / f"{name}.jsonl", of_split) for name, of_split in chosen.items()}
        membership(chosen).to_csv(folder / MEMBERSHIP, index=False)
        prompt = PromptRecord(system=settings.system, labels=list(settings.labels))
        (folder / PROMPT).write_text(prompt.to_json(), encoding="utf-8")
        # Beside the splits and not in them, so that another column to compare trains nothing again.
        columns = ["id", *(SLICE + name for name in settings.bias_columns)]
        chosen["test"][columns].to_csv(folder / SLICES, index=False)
        record = DataRecord(
            tenant=tenant,
            task=settings.task,
            source=source,
            splits=splits,
            source_rows=len(frame),
            contract_success=contract.success,
            base_model_sha256=base_model_sha256,
            base_files_sha256=base_files_sha256,
            identifiers=contract.identifiers,
            label_shares=label_shares(rows) if settings.task == "labels" else None,
            warnings=data_warnings(chosen, contract, settings),
            settings=settings.model_dump(mode="json"),
            own_checks=own_checks(own),
        )
        (folder / DATA).write_text(record.to_json(), encoding="utf-8")
    return record, contract


def check_rows(
    frame: pd.DataFrame,
    tenant: str,
    settings: DataSettings,
    tokenizer: Any | None,
    own: dict[str, Any] | None = None,
    previous: DataRecord | None = None,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], ContractRecord]:
    """Hold a source's rows against the tenant's contract.

    Args:
        tokenizer: the base model's; without it nothing that counts tokens is checked.
        own: the tenant's own suite, about the columns of `frame`.
        previous: the data of the version that was registered last.

    Returns:
        The rows that may be used, those of each split that are used, and the contract.
    """
    rows = candidate_rows(frame, settings)
    if tokenizer is not None:
        rows = with_prompts(rows, tokenizer, settings)
    chosen = choose_rows(rows, settings)
    contract = check_contract(rows, tenant, settings, frame, own)
    checks = [*contract.checks, *check_splits(rows, chosen, settings), *check_shares(rows, settings)]
    if previous is not None:
        checks += check_previous(rows, len(frame), previous, settings)
    checks.append(check_near_duplicates(chosen, settings))
    if tokenizer is not None and settings.system:
        checks.append(check_system(settings.system, tokenizer))
    identifiers = identifiers_of(rows, len(frame), settings)
    return rows, chosen, ContractRecord.of(tenant, len(rows), checks, identifiers)


def data_warnings(
    chosen: dict[str, pd.DataFrame], contract: ContractRecord, settings: DataSettings
) -> list[str]:
    """Return what keeps the contract and still weakens training or evaluation, by `check_rows`."""
    alike = next(check for check in contract.checks if check.setting == NEAR_DUPLICATES)
    return [
        *thin_labels(chosen, settings.labels, settings.contract.min_label_rows),
        *near_duplicate_warnings(alike, chosen, settings),
        *answered_warnings(chosen),
    ]


def _write_split(path: Path, rows: pd.DataFrame) -> SplitRecord:
    examples = [Example.model_validate(row) for row in rows[list(Example.model_fields)].to_dict("records")]
    path.write_text("".join(example.model_dump_json() + "\n" for example in examples), encoding="utf-8")
    return SplitRecord(rows=len(rows), groups=rows["group"].nunique(), sha256=sha256_file(path))
