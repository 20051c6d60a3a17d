"""Answers kept as a file: what is read back is what was written."""

from pathlib import Path

import pandas as pd
import pytest

from lora_ops.adapter_files import adapter_digests
from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.answered import Answered, digest_inputs, read_answers, write_answers
from lora_ops.hashing import sha256_file
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.base_model import read_base_model
from lora_ops.records.evaluation import Agreement
from lora_ops.records.generation import read_generation
from lora_ops.settings.evaluate import EvaluateSettings


def test_answers_come_back_as_they_were_given(tiny_base: Path, tmp_path: Path) -> None:
    given = [
        "",
        "NA",
        "null",
        "007",
        "1.0",
        'two "quoted"',
        "a,b",
        "line\nbreak",
        "carriage\rreturn",
        "<b>",
        " x ",
    ]
    frame = pd.DataFrame(
        {
            "id": [str(row) for row in range(len(given))],
            "group": "g",
            "text": given,
            "target": given,
            "base": given,
            "adapter": given[::-1],
        }
    )
    for name in ("test.jsonl", *ADAPTER_FILES):
        (tmp_path / name).write_text(name)
    agreement = {"base": Agreement(rows=8, equal=7)}
    digests = adapter_digests(tmp_path)
    answered = Answered(frame, {"base": 1.0}, {"base": 9}, "engine", agreement, digests)
    settings = EvaluateSettings(metrics=("exact_match",), max_new_tokens=14, few_shot=6)
    inputs = {path: sha256_file(path) for path in (tmp_path / "test.jsonl", tiny_base / "base_model.json")}
    record = write_answers("media", answered, settings, inputs, tmp_path / "report")
    pd.testing.assert_frame_equal(read_answers(tmp_path / "report"), frame, check_dtype=False)
    assert read_generation(tmp_path / "report") == record
    assert record.settings == {"max_new_tokens": 14, "few_shot": 6}
    assert record.adapter_sha256 == sha256_file(tmp_path / "adapter_model.safetensors")
    assert record.base_files_sha256 == read_base_model(tiny_base).files_sha256
    assert record.adapter_config_sha256 == sha256_file(tmp_path / "adapter_config.json")


@pytest.mark.parametrize("name", ["test.jsonl", "train.jsonl", "prompt.json", "base_model.json"])
def test_answers_are_not_those_to_other_rows(tmp_path: Path, name: str) -> None:
    """After a `dvc checkout` in between the record named the new rows, and DVC called it up to date."""
    for each in ("test.jsonl", "train.jsonl", "prompt.json", "base_model.json"):
        (tmp_path / each).write_text(each)
    inputs = digest_inputs(tmp_path, tmp_path)
    (tmp_path / name).write_text("other")
    answered = Answered(pd.DataFrame(), {}, {}, "engine", {}, dict.fromkeys(ADAPTER_FILES, "0" * 64))
    settings = EvaluateSettings(metrics=("exact_match",), max_new_tokens=14, few_shot=6)
    with pytest.raises(LoraOpsError, match=f"{name} was changed while answers were given: run this again"):
        write_answers("media", answered, settings, inputs, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_read_answers_before_anybody_answered_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="run the stage `generate` first"):
        read_answers(tmp_path)
