"""Prepared data on disk: whole, or only the contract that says why not."""

from pathlib import Path

import pytest

from lora_ops.datasets.prepare import prepare
from lora_ops.datasets.prompts import render_example
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.loading import load_tokenizer
from lora_ops.records.data import ContractRecord, read_data_record
from lora_ops.records.example import read_split
from lora_ops.settings.data import DataSettings


def settings(**values: object) -> DataSettings:
    return DataSettings.model_validate(
        {
            "source": "faq.csv",
            "template": "{question}",
            "target": "answer",
            "task": "text",
            "system": "Be brief.",
            "rows": {"train": 20, "validation": 5, "test": 5},
            "contract": {"min_rows": 10},
        }
        | values
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    lines = "".join(f"What is {n} and {n}?,It is {2 * n}.\n" for n in range(40))
    (tmp_path / "faq.csv").write_text("question,answer\n" + lines)
    return tmp_path


def test_splits_carry_the_chat_template_and_the_record_their_digests(root: Path, tiny_base: Path) -> None:
    record, contract = prepare("faq", settings(), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    assert contract.success
    assert read_data_record(root / "out") == record
    for name, split in record.splits.items():
        assert sha256_file(root / "out" / f"{name}.jsonl") == split.sha256
    row = read_split(root / "out", "train")[0]
    assert row.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{row.text}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert row.completion == f"{row.target}<|im_end|>"


def test_line_separators_inside_a_text_survive(root: Path, tiny_base: Path) -> None:
    with (root / "faq.csv").open("a", encoding="utf-8") as file:
        file.write("".join(f"First\u2028second {n}\x85third?,No {n}.\n" for n in range(40)))
    prepare("faq", settings(), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    texts = [row.text for split in ("train", "validation", "test") for row in read_split(root / "out", split)]
    assert len(texts) == 30
    assert any("\u2028second" in text and "\x85third?" in text for text in texts)


def test_preparing_twice_gives_the_same_bytes(root: Path, tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    records = [prepare("faq", settings(), tokenizer, "0" * 64, root / "out", root, root)[0] for _ in range(2)]
    assert records[0] == records[1]


def test_a_broken_contract_leaves_only_its_result(root: Path, tiny_base: Path) -> None:
    with (root / "faq.csv").open("a") as file:
        file.write("Where do I write?,To jo@example.org\n")
    with pytest.raises(LoraOpsError, match=r"no e-mail address in target \(row 41: 'To jo@example.org'\)"):
        prepare("faq", settings(), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    assert [path.name for path in (root / "out").iterdir()] == ["contract.json"]
    kept = ContractRecord.model_validate_json((root / "out" / "contract.json").read_text())
    assert not kept.success
    with pytest.raises(LoraOpsError, match="run the stage `prepare` first"):
        read_split(root / "out", "train")


def test_one_group_cannot_be_split_and_that_is_said(root: Path, tiny_base: Path) -> None:
    (root / "faq.csv").write_text("question,answer,who\n" + "".join(f"q{n}?,a{n},me\n" for n in range(20)))
    with pytest.raises(LoraOpsError, match="1 groups are too few for three splits"):
        prepare("faq", settings(group="who"), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)


def test_a_template_that_does_not_continue_its_prompt_is_refused(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ 'GO' }}"
    with pytest.raises(LoraOpsError, match="does not continue its generation prompt"):
        render_example(tokenizer, "question", "answer", None)
