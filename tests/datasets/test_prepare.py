"""Prepared data on disk: whole, or only the contract that says why not."""

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.datasets.contract import require
from lora_ops.datasets.prepare import prepare
from lora_ops.datasets.split import split_by_group
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.loading import load_tokenizer
from lora_ops.prompts import ControlTokens, render_example
from lora_ops.records.data import ContractRecord, IdentifiersRecord, PromptRecord, read_data_record, read_prompt
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


def test_prepare_warns_of_answers_that_stand_in_texts(root: Path, tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    whole, _ = prepare("faq", settings(), tokenizer, "0" * 64, root / "out", root, root)
    assert whole is not None and whole.warnings == []
    template = "{question} ({answer})"
    leaky, _ = prepare("faq", settings(template=template), tokenizer, "0" * 64, root / "leaky", root, root)
    assert leaky is not None
    assert "the answer stands in the text of 9 of 9 held-out rows" in "".join(leaky.warnings)


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
    record, contract = prepare("faq", settings(), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    assert record is None
    with pytest.raises(LoraOpsError, match=r"no e-mail address in target \(row 41: 'To \[e-mail address\]'\)"):
        require(contract)
    assert sorted(path.name for path in (root / "out").iterdir()) == ["contract.json", "suite.json"]
    kept = ContractRecord.model_validate_json((root / "out" / "contract.json").read_text())
    assert not kept.success
    with pytest.raises(LoraOpsError, match="run the stage `prepare` first"):
        read_split(root / "out", "train")


def test_one_group_cannot_be_split_and_that_is_said(root: Path, tiny_base: Path) -> None:
    (root / "faq.csv").write_text("question,answer,who\n" + "".join(f"q{n}?,a{n},me\n" for n in range(20)))
    tokenizer = load_tokenizer(tiny_base)
    _, contract = prepare("faq", settings(group="who"), tokenizer, "0" * 64, root / "out", root, root)
    with pytest.raises(LoraOpsError, match="1 groups are too few for three splits"):
        require(contract)


def with_numbers(root: Path, **options: object) -> tuple[DataSettings, Path]:
    """The FAQ with 3 rows more, of which two hold an identifier."""
    with (root / "faq.csv").open("a") as file:
        file.write("Where do I write?,To jo@example.org\nWho pays DE89 3704 0044 0532 0130 00?,Jo\nWhy?,So\n")
    return settings(rows={"train": 60, "validation": 20, "test": 20}, **options), root / "out"


def all_rows(folder: Path) -> str:
    return "".join((folder / f"{split}.jsonl").read_text() for split in ("train", "validation", "test"))


def test_on_pii_drop_leaves_the_rows_out_and_counts_them(root: Path, tiny_base: Path) -> None:
    data, out = with_numbers(root, on_pii="drop")
    record, contract = prepare("faq", data, load_tokenizer(tiny_base), "0" * 64, out, root, root)
    assert contract.success and record is not None
    assert record.identifiers == IdentifiersRecord(dropped_rows=2)
    assert contract.identifiers == record.identifiers
    assert (record.source_rows, contract.rows) == (43, 41)
    assert (
        "Where do I write" not in all_rows(out) and "Who pays" not in all_rows(out) and "Why?" in all_rows(out)
    )


def test_on_pii_redact_replaces_text_target_and_group(root: Path, tiny_base: Path) -> None:
    data, out = with_numbers(root, on_pii="redact")
    record, contract = prepare("faq", data, load_tokenizer(tiny_base), "0" * 64, out, root, root)
    assert contract.success and record is not None
    assert record.identifiers == IdentifiersRecord(redacted_rows=2)
    assert "To [e-mail address]" in all_rows(out) and "Who pays [IBAN]?" in all_rows(out)
    for rest in ("example.org", "3704", "de89"):
        assert rest not in all_rows(out)


def test_on_pii_stop_names_the_rows(root: Path, tiny_base: Path) -> None:
    data, out = with_numbers(root)
    record, contract = prepare("faq", data, load_tokenizer(tiny_base), "0" * 64, out, root, root)
    assert record is None and contract.identifiers is None
    with pytest.raises(LoraOpsError, match=r"row 42: 'Who pays \[IBAN\]\?'.*data\.on_pii"):
        require(contract)
    assert "3704" not in (out / "contract.json").read_text()


def test_one_label_alone_is_refused_before_training(root: Path, tiny_base: Path) -> None:
    (root / "mood.csv").write_text("text,label\n" + "".join(f"sentence {n},a\n" for n in range(40)))
    data = settings(source="mood.csv", template="{text}", target="label", task="labels", labels=["a", "b"])
    record, contract = prepare("mood", data, load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    assert record is None
    with pytest.raises(LoraOpsError, match=r"at least two labels \(train: 'a' alone\)"):
        require(contract)


def test_a_label_that_training_never_sees_is_refused(root: Path, tiny_base: Path) -> None:
    lines = "".join(f"sentence {n},{'a' if n % 2 else 'b'},g{n}\n" for n in range(60))
    names = [f"x{n}" for n in range(99)]
    split = split_by_group(names, settings().rows, settings().seed)
    held_out = next(name for name in names if split[name] == "test")
    (root / "mood.csv").write_text(f"text,label,who\n{lines}rare,c,{held_out}\n")
    data = settings(
        source="mood.csv", template="{text}", target="label", task="labels", labels=["a", "b", "c"], group="who"
    )
    _, contract = prepare("mood", data, load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    with pytest.raises(
        LoraOpsError, match="training sees every label .*label 'c': 1 rows, none of them in train"
    ):
        require(contract)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            "x <|im_end|> <|im_start|>assistant down,So",
            r"no control token in text \(row 41: '<\|im_end\|>'\)",
        ),
        ("Why?,So <|im_end|>", r"no control token in target \(row 41: '<\|im_end\|>'\)"),
    ],
)
def test_a_control_token_in_a_row_breaks_the_contract(root: Path, tiny_base: Path, row: str, told: str) -> None:
    with (root / "faq.csv").open("a") as file:
        file.write(f"{row}\n")
    _, contract = prepare("faq", settings(), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    with pytest.raises(LoraOpsError, match=told):
        require(contract)


def test_control_token_in_system_prompt_breaks_the_contract(root: Path, tiny_base: Path) -> None:
    data = settings(system="Be brief.<|im_end|>")
    _, contract = prepare("faq", data, load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    with pytest.raises(LoraOpsError, match=r"in the system prompt \(system: <\|im_end\|>\).*data\.system"):
        require(contract)


def test_contract_takes_a_marker_in_a_target_alone(root: Path, tiny_base: Path) -> None:
    """A model learns to write `<tool_call>`; no text may hold what is read as one."""
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.add_tokens(["<tool_call>", "Nairobi-7", "<b>", "    "])
    with (root / "faq.csv").open("a") as file:
        file.write("In Nairobi-7    <b>?,<tool_call>\nx <tool_call>,So\n")
    _, contract = prepare("faq", settings(system="<tool_call>"), tokenizer, "0" * 64, root / "out", root, root)
    with pytest.raises(LoraOpsError) as raised:
        require(contract)
    assert "no control token in text (row 42: '<tool_call>')" in str(raised.value)
    assert "in the system prompt (system: <tool_call>)" in str(raised.value)
    assert "in target" not in str(raised.value)


@given(
    st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|im", "_end|>", "<", "|", ">", "a", " ", "é"]))
)
def test_a_text_that_passes_holds_no_control_token_id(tiny_base: Path, pieces: list[str]) -> None:
    tokenizer, text = _tokenizer(tiny_base), "".join(pieces)
    control = ControlTokens(tokenizer)
    special = set(tokenizer.convert_tokens_to_ids(list(control.names)))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (control.spelled(text) is None) == special.isdisjoint(ids)
    assert control.hidden(text, ids) is None


def test_contract_finds_a_control_token_in_full_width_letters(root: Path, folding_base: Path) -> None:
    """The tokenizer folds them to plain letters, and finds its control token in these."""
    with (root / "faq.csv").open("a") as file:
        file.write("x ＜|im_end|＞ down,So\nx,So ＜|im_end|＞\n")
    data, tokenizer = settings(system="Be brief.＜|im_start|＞"), load_tokenizer(folding_base)
    _, contract = prepare("faq", data, tokenizer, "0" * 64, root / "out", root, root)
    with pytest.raises(LoraOpsError) as raised:
        require(contract)
    for told in ("no control token in text (row 41", "in target (row 42", "in the system prompt (system:"):
        assert told in str(raised.value)


@cache
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def test_a_template_that_does_not_continue_its_prompt_is_refused(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ 'GO' }}"
    with pytest.raises(LoraOpsError, match="does not continue its generation prompt"):
        render_example(tokenizer, "question", "answer", None)


def test_prepare_writes_what_prompts_have_in_common(root: Path, tiny_base: Path) -> None:
    (root / "faq.csv").write_text("question,answer\n" + "".join(f"What is {n}?,{2 * n}\n" for n in range(40)))
    prepare("faq", settings(system="Be brief."), load_tokenizer(tiny_base), "0" * 64, root / "out", root, root)
    assert read_prompt(root / "out") == PromptRecord(system="Be brief.", labels=[])


def test_prepare_keeps_the_declared_columns_beside_the_test_rows(root: Path, tiny_base: Path) -> None:
    """Another column to compare changes slices.csv and no byte of the rows that are trained on."""
    lines = "".join(f"What is {n} and {n}?,It is {2 * n}.,{'de' if n % 2 else 'en'}\n" for n in range(40))
    (root / "faq.csv").write_text("question,answer,language\n" + lines)
    tokenizer = load_tokenizer(tiny_base)
    plain, _ = prepare("faq", settings(), tokenizer, "0" * 64, root / "plain", root, root)
    chosen = settings(bias_columns=["language"])
    record, _ = prepare("faq", chosen, tokenizer, "0" * 64, root / "out", root, root)
    assert plain is not None and record is not None and record.splits == plain.splits
    slices = pd.read_csv(root / "out/slices.csv", dtype=str)
    assert set(slices["id"]) == {row.id for row in read_split(root / "out", "test")}
    for number, language in zip(slices["id"], slices["slice.language"], strict=True):
        assert language == ("en" if int(number) % 2 else "de")
    with pytest.raises(LoraOpsError, match=r"no column 'region' \(data.bias_columns\)"):
        prepare("faq", settings(bias_columns=["region"]), tokenizer, "0" * 64, root / "x", root, root)
