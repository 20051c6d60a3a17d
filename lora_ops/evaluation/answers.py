"""The answers of base model and adapter to the held-out rows, kept as files: the slow part of an evaluation."""

import csv
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.evaluation.generate import generate
from lora_ops.hashing import sha256_file
from lora_ops.paths import GENERATED, GENERATION, require_file
from lora_ops.records.evaluation import ADAPTER, BASE, BASE_FEW_SHOT
from lora_ops.records.example import Example
from lora_ops.records.generation import GenerationRecord
from lora_ops.settings.evaluate import EvaluateSettings


def answer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Example],
    settings: EvaluateSettings,
    few_shot: Sequence[str] = (),
) -> tuple[pd.DataFrame, dict[str, float], dict[str, int]]:
    """Return the answers of the base model and of the adapter that `model` (a PeftModel) carries.

    Args:
        few_shot: the prompt of each row with examples before it, which only the base model gets; none: no such
            system.

    Returns:
        A frame with one row for each example (id, group, text, target, then a column for each system), the
        seconds that each system took, and how many of its answers were cut at `max_new_tokens`.
    """
    prompts = [row.prompt for row in rows]
    limits = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
    answers, seconds, cut = {}, {}, {}
    asked = {BASE: prompts, BASE_FEW_SHOT: list(few_shot), ADAPTER: prompts}
    for system, questions in asked.items():
        if not questions:
            continue
        start = time.perf_counter()
        with nullcontext() if system == ADAPTER else model.disable_adapter():
            answers[system], cut[system] = generate(model, tokenizer, questions, what=system, **limits)
        seconds[system] = round(time.perf_counter() - start, 2)
    frame = pd.DataFrame([row.model_dump(include={"id", "group", "text", "target"}) for row in rows])
    return frame.assign(**answers), seconds, cut


def write_answers(
    tenant: str,
    answers: pd.DataFrame,
    seconds: dict[str, float],
    truncated: dict[str, int],
    test_file: Path,
    adapter_file: Path,
    folder: Path,
) -> GenerationRecord:
    """Write the answers and the record of who gave them into `folder`."""
    record = GenerationRecord(
        tenant=tenant,
        rows=len(answers),
        test_sha256=sha256_file(test_file),
        adapter_sha256=sha256_file(adapter_file),
        seconds=seconds,
        truncated=truncated,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Quoted, since a carriage return in an answer would else end its row.
    answers.to_csv(folder / GENERATED, index=False, quoting=csv.QUOTE_ALL)
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
