"""Answers kept as a file: what is read back is what was written."""

from pathlib import Path

import pandas as pd
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.answers import answer, read_answers, write_answers
from lora_ops.evaluation.generate import generate
from lora_ops.hashing import sha256_file
from lora_ops.loading import load_base_model
from lora_ops.records.evaluation import ADAPTER, BASE, BASE_FEW_SHOT
from lora_ops.records.example import Example
from lora_ops.records.generation import read_generation
from lora_ops.settings.evaluate import EvaluateSettings


def test_answers_come_back_as_they_were_given(tmp_path: Path) -> None:
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
    for name in ("test.jsonl", "adapter.safetensors"):
        (tmp_path / name).write_text(name)
    files = (tmp_path / "test.jsonl", tmp_path / "adapter.safetensors")
    record = write_answers(
        "media", frame, {"base": 1.0, "adapter": 2.0}, {"base": 9, "adapter": 0}, *files, tmp_path / "report"
    )
    pd.testing.assert_frame_equal(read_answers(tmp_path / "report"), frame, check_dtype=False)
    assert read_generation(tmp_path / "report") == record
    assert record.adapter_sha256 == sha256_file(files[1])


def test_answer_asks_the_base_in_both_ways(tiny_base: Path) -> None:
    """Only the base model gets the few-shot prompts, and the adapter is off for it."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_base_model(tiny_base)
    prompts = ["Lodging", "Airlines", "negative"]
    rows = [
        Example(id=str(n), group="g", text=text, target="x", prompt=text, completion="x")
        for n, text in enumerate(prompts)
    ]
    shown = [f"Name the merchant category. {text}" for text in prompts]
    settings = EvaluateSettings(metrics=("exact_match",), max_new_tokens=5, few_shot=0, batch_size=2)
    limits = {"max_new_tokens": 5, "batch_size": 2}
    plain = {
        BASE: generate(model, tokenizer, prompts, **limits)[0],
        BASE_FEW_SHOT: generate(model, tokenizer, shown, **limits)[0],
    }
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    found, seconds, cut = answer(tuned, tokenizer, rows, settings, shown)
    for system, answers in plain.items():
        assert found[system].tolist() == answers
    assert found[ADAPTER].tolist() != plain[BASE]
    assert set(seconds) == set(cut) == {BASE, BASE_FEW_SHOT, ADAPTER}
    assert BASE_FEW_SHOT not in answer(tuned, tokenizer, rows, settings)[0]


def test_read_answers_before_anybody_answered_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="run the stage `generate` first"):
        read_answers(tmp_path)
