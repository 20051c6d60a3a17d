"""What was answered in an evaluation, and its files."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.paths import ADAPTER_FILES, BASE_MODEL, GENERATED, GENERATION, PROMPT, require_file
from lora_ops.records.base_model import read_base_model
from lora_ops.records.evaluation import Agreement
from lora_ops.records.generation import GenerationRecord
from lora_ops.settings.evaluate import EvaluateSettings

TEST = "test.jsonl"


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


def digest_inputs(prepared: Path, base: Path) -> dict[Path, str]:
    """Return the SHA-256 of each file that answers depend on besides the adapter; take it before they are read.

    Args:
        prepared: folder of the tenant's prepared data.
        base: folder of the base model, whose record names its weights and its other files.

    Raises:
        LoraOpsError: one is missing.
    """
    paths = [prepared / TEST, prepared / "train.jsonl", prepared / PROMPT]
    for path in paths:
        require_file(path, "prepare")
    require_file(base / BASE_MODEL, "base_model")
    return {path: sha256_file(path) for path in (*paths, base / BASE_MODEL)}


def write_answers(
    tenant: str, answered: Answered, settings: EvaluateSettings, inputs: Mapping[Path, str], folder: Path
) -> GenerationRecord:
    """Write the answers and the record of who gave them, and by which settings, into `folder`.

    Args:
        inputs: what `digest_inputs` gave before anybody answered.

    Raises:
        LoraOpsError: a file was changed since, as `git switch` and `dvc checkout` do in another terminal. DVC
            would call these the answers to the new one.
    """
    for path, digest in inputs.items():
        if not path.is_file() or sha256_file(path) != digest:
            raise LoraOpsError(f"{path} was changed while answers were given: run this again.")
    base = next(path.parent for path in inputs if path.name == BASE_MODEL)
    record = GenerationRecord(
        tenant=tenant,
        rows=len(answered.frame),
        base_files_sha256=read_base_model(base).files_sha256,
        test_sha256=next(digest for path, digest in inputs.items() if path.name == TEST),
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
