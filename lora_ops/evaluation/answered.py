"""What was answered in an evaluation, and its files."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from lora_ops.hashing import sha256_file
from lora_ops.paths import ADAPTER_FILES, GENERATED, GENERATION, require_file
from lora_ops.records.evaluation import Agreement
from lora_ops.records.generation import GenerationRecord
from lora_ops.settings.evaluate import EvaluateSettings


@dataclass(frozen=True)
class Answered:
    """What was answered, and by whom.

    Attributes:
        frame: one row for each example (id, group, text, target, then a column for each system).
        seconds: that each system took.
        truncated: how many of a system's answers were cut at `max_new_tokens`.
        by: who gave the answers of `frame`.
        agreement: how many of the sampled answers the engine and transformers have in common.
        adapter_files: the SHA-256 of each file of the adapter that answered, by name.
    """

    frame: pd.DataFrame
    seconds: dict[str, float]
    truncated: dict[str, int]
    by: Literal["engine", "transformers"]
    agreement: dict[str, Agreement]
    adapter_files: dict[str, str]


def write_answers(
    tenant: str, answered: Answered, settings: EvaluateSettings, test_file: Path, folder: Path
) -> GenerationRecord:
    """Write the answers and the record of who gave them, and by which settings, into `folder`."""
    record = GenerationRecord(
        tenant=tenant,
        rows=len(answered.frame),
        test_sha256=sha256_file(test_file),
        adapter_sha256=answered.adapter_files[ADAPTER_FILES[0]],
        adapter_config_sha256=answered.adapter_files[ADAPTER_FILES[1]],
        seconds=answered.seconds,
        truncated=answered.truncated,
        answered_by=answered.by,
        agreement=answered.agreement,
        settings=settings.answering,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Quoted, since a carriage return in an answer would else end its row.
    answered.frame.to_csv(folder / GENERATED, index=False, quoting=csv.QUOTE_ALL)
    (folder / GENERATION).write_text(record.to_json(), encoding="utf-8")
    return record


def read_answers(folder: Path) -> pd.DataFrame:
    """Read the answers that `write_answers` left in `folder`, every column as text.

    Raises:
        LoraOpsError: nobody has answered yet.
    """
    require_file(folder / GENERATED, "generate")
    # An empty answer is an answer, and so is "NA".
    return pd.read_csv(folder / GENERATED, dtype=str, keep_default_na=False)
