"""A tenant's prepared data: splits as JSONL, their record and the result of the contract, in one folder."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.datasets.contract import check_contract, require
from lora_ops.datasets.prompts import render_example
from lora_ops.datasets.source import read_source
from lora_ops.datasets.split import SPLITS, membership, sample, split_by_group, thin_labels
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.paths import CONTRACT, DATA, MEMBERSHIP
from lora_ops.records.data import ContractRecord, DataRecord, SplitRecord
from lora_ops.records.example import Example
from lora_ops.settings.data import DataSettings


def candidate_rows(frame: pd.DataFrame, settings: DataSettings) -> pd.DataFrame:
    """Every row of a source: what is asked, what should be answered, and which split it falls into.

    Returns:
        Columns id (row number in the source, from 1), text, target, group, split.
    """
    rows = pd.DataFrame({"id": [str(number) for number in range(1, len(frame) + 1)]})
    filled = frame.fillna("").to_dict("records")
    rows["text"] = [settings.template.format_map(row).strip() for row in filled]
    target = frame[settings.target].reset_index(drop=True)
    rows["target"] = target.where(target.isna(), target.astype(str).str.strip())
    group = frame[settings.group].reset_index(drop=True) if settings.group else rows["text"].str.lower()
    rows["group"] = group.where(group.isna(), group.astype(str))
    split_of = split_by_group(rows["group"].astype(str).tolist(), settings.rows, settings.seed)
    rows["split"] = rows["group"].astype(str).map(split_of)
    return rows


def with_prompts(rows: pd.DataFrame, tokenizer: Any, settings: DataSettings) -> pd.DataFrame:
    """`rows` with columns prompt, completion and tokens (of both together)."""
    pairs = [
        render_example(tokenizer, text, str(target), settings.system)
        for text, target in zip(rows["text"], rows["target"], strict=True)
    ]
    prompts, completions = [prompt for prompt, _ in pairs], [completion for _, completion in pairs]
    whole = [prompt + completion for prompt, completion in pairs]
    tokens = [len(ids) for ids in tokenizer(whole, add_special_tokens=False)["input_ids"]]
    return rows.assign(prompt=prompts, completion=completions, tokens=tokens)


def prepare(
    tenant: str,
    settings: DataSettings,
    tokenizer: Any,
    base_model_sha256: str,
    target: Path,
    root: Path,
    raw: Path,
) -> tuple[DataRecord, ContractRecord]:
    """Write the splits, `membership.csv`, `data.json` and `contract.json` into `target`.

    When the contract is broken only `contract.json` is written, so that no stage can use the data.

    Raises:
        LoraOpsError: the source can't be read, the contract is broken, or a split would be empty.
    """
    frame, source = read_source(settings, root, raw)
    rows = with_prompts(candidate_rows(frame, settings), tokenizer, settings)
    contract = check_contract(rows, tenant, settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{tenant}-") as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        (folder / CONTRACT).write_text(contract.to_json(), encoding="utf-8")
        if not contract.success:
            _replace(folder, target)
            require(contract)
        chosen_rows, splits = {}, {}
        for name in SPLITS:
            of_split = rows[rows["split"] == name]
            # Held-out rows keep their natural shares: a balanced test would measure another mix.
            balance = settings.balance and settings.task == "labels" and name == "train"
            chosen = sample(of_split, getattr(settings.rows, name), balance=balance, seed=settings.seed)
            chosen_rows[name] = chosen
            if chosen.empty:
                raise LoraOpsError(
                    f"The {name} split of '{tenant}' is empty: {rows['group'].nunique()} groups are too "
                    "few for three splits; add rows or choose another data.group."
                )
            path = folder / f"{name}.jsonl"
            records = chosen[list(Example.model_fields)].to_dict("records")
            examples = [Example.model_validate(record) for record in records]
            path.write_text("".join(e.model_dump_json() + "\n" for e in examples), encoding="utf-8")
            splits[name] = SplitRecord(
                rows=len(chosen), groups=chosen["group"].nunique(), sha256=sha256_file(path)
            )
        membership(chosen_rows).to_csv(folder / MEMBERSHIP, index=False)
        record = DataRecord(
            tenant=tenant,
            task=settings.task,
            source=source,
            splits=splits,
            source_rows=len(rows),
            contract_success=contract.success,
            base_model_sha256=base_model_sha256,
            warnings=thin_labels(chosen_rows, settings.labels, settings.contract.min_label_rows),
        )
        (folder / DATA).write_text(record.to_json(), encoding="utf-8")
        _replace(folder, target)
    return record, contract


def _replace(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    folder.replace(target)
