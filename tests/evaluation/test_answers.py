"""The answers of an evaluation: the engine gives them, and transformers a sample of them again."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ops.engines.protocol import one_of
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.errors import LoraOpsError
from lora_ops.evaluation import answers as answering
from lora_ops.evaluation.answers import SAMPLE, answer, sample_of, whole_characters
from lora_ops.evaluation.generate import generate, generate_with_engine
from lora_ops.evaluation.likelihood import choose_labels
from lora_ops.loading import load_base_model, load_tokenizer
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.evaluation import ADAPTER, ADAPTER_LABELS, BASE, BASE_FEW_SHOT, BASE_LABELS
from lora_ops.records.example import Example
from lora_ops.settings.evaluate import EvaluateSettings
from tests.conftest import record_base

SETTINGS = EvaluateSettings(metrics=("exact_match",), max_new_tokens=5, few_shot=0, batch_size=4)


def rows(count: int) -> list[Example]:
    return [
        Example(
            id=str(n), group="g", text="t", target="x", prompt=f"{'Lodging at sea ' * n}{n}", completion="x"
        )
        for n in range(1, count + 1)
    ]


@pytest.fixture
def tuned(tiny_base: Path, tmp_path: Path) -> Callable[[Path], Path]:
    """Save an adapter that changes answers of the base model in a folder, and return its folder."""

    def save(base: Path) -> Path:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(3)
        model, _ = load_base_model(base)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return save


@pytest.mark.parametrize("kept", ["tiny_base", "tiny_bf16_base"])
def test_answer_gives_what_transformers_would(
    kept: str, request: pytest.FixtureRequest, tuned: Callable[[Path], Path]
) -> None:
    """Only the base model gets the few-shot prompts, and the adapter is off for it."""
    from peft import PeftModel

    tiny_base = request.getfixturevalue(kept)
    adapter, examples = tuned(tiny_base), rows(20)
    prompts = [row.prompt for row in examples]
    shown = [f"Name the merchant category. {prompt}" for prompt in prompts]
    found = answer(tiny_base, adapter, examples, SETTINGS, shown)
    model, tokenizer = load_base_model(tiny_base)
    limits = {"max_new_tokens": 5, "batch_size": 3}
    expected = {
        BASE: generate(model, tokenizer, prompts, **limits),
        BASE_FEW_SHOT: generate(model, tokenizer, shown, **limits),
    }
    expected[ADAPTER] = generate(PeftModel.from_pretrained(model, adapter), tokenizer, prompts, **limits)
    for system, (texts, cut, _) in expected.items():
        assert list(map(whole_characters, found.frame[system])) == list(map(whole_characters, texts))
        assert found.truncated[system] == cut
        assert (found.agreement[system].rows, found.agreement[system].equal) == (SAMPLE, SAMPLE)
    assert expected[ADAPTER] != expected[BASE] != expected[BASE_FEW_SHOT]
    assert found.by == "engine" and set(found.seconds) == set(expected)


def test_answer_without_few_shot_has_no_such_system(tiny_base: Path, tuned: Callable[[Path], Path]) -> None:
    found = answer(tiny_base, tuned(tiny_base), rows(2), SETTINGS)
    assert set(found.agreement) == set(found.seconds) == {BASE, ADAPTER}
    assert len(found.frame) == found.agreement[BASE].rows == 2


def test_answer_takes_transformers_where_no_batch_is(
    tiny_base: Path, tuned: Callable[[Path], Path], tmp_path: Path
) -> None:
    """The engine takes one sequence after the other of this class, so it answers the sample."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    small, _ = load_base_model(tiny_base)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=small.config.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(base)
    record_base(base)
    prompts = [row.prompt for row in rows(10)]
    found = answer(base, tuned(base), rows(10), SETTINGS, (), ["Lodging", "neutral"], prompts)
    assert found.by == "transformers" and len(found.frame) == 10
    assert set(found.frame[BASE_LABELS]) <= {"Lodging", "neutral"}
    assert {both.equal for both in found.agreement.values()} == {SAMPLE}


def test_answer_refuses_an_engine_that_differs(
    tiny_base: Path, tuned: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers gets other weights here, as if the engine had read them wrongly."""
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    model, _ = load_base_model(other)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(other)
    record_base(other)
    monkeypatch.setattr(answering, "load_base_model", lambda _, *given: load_base_model(other, *given))
    with pytest.raises(LoraOpsError, match=r"agree on \d of 8 answers \(base\)"):
        answer(tiny_base, tuned(tiny_base), rows(20), SETTINGS)


def test_answer_says_which_adapter_the_engine_refuses(tiny_base: Path, tuned: Callable[[Path], Path]) -> None:
    adapter = tuned(tiny_base)
    (adapter / ADAPTER_FILES[0]).write_bytes(b"{}")
    with pytest.raises(LoraOpsError, match="engine that serves can't answer: The adapter in .* can't be read"):
        answer(tiny_base, adapter, rows(2), SETTINGS)


def test_answer_refuses_an_adapter_that_changes_meanwhile(
    tiny_base: Path, tuned: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record named the files as they were at the end, whatever had answered."""
    adapter = tuned(tiny_base)

    def trained_again(*given: Any) -> Any:
        config = adapter / ADAPTER_FILES[1]
        config.write_text(config.read_text() + " ")
        return load_base_model(*given)

    monkeypatch.setattr(answering, "load_base_model", trained_again)
    with pytest.raises(LoraOpsError, match="was changed while it answered"):
        answer(tiny_base, adapter, rows(2), SETTINGS)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 300])
def test_sample_of_rows_has_the_shortest_and_the_longest(count: int) -> None:
    places = sample_of(rows(count)[::-1])
    assert len(places) == min(count, SAMPLE) and {places[0], places[-1]} == {0, count - 1}


def test_answers_held_to_labels_are_the_engines(tiny_base: Path, tuned: Callable[[Path], Path]) -> None:
    """An answer that is a label by itself is not asked for again, and would be the same."""
    adapter, examples = tuned(tiny_base), rows(10)
    settings = SETTINGS.model_copy(update={"max_new_tokens": 1})
    free = list(answer(tiny_base, adapter, examples, settings).frame[ADAPTER])
    labels = ["Z", "q", next(text for text in free if text.isascii() and text.isprintable() and text)]
    found = answer(tiny_base, adapter, examples, settings, (), labels)
    held = list(found.frame[ADAPTER_LABELS])
    assert list(found.frame[ADAPTER]) == free and set(held) <= set(labels)
    assert labels[2] in held and set(held) != {labels[2]}
    assert ADAPTER_LABELS not in found.agreement  # transformers can't be held to labels

    async def ask() -> list[str]:
        engine = TorchEngine(tiny_base)
        await engine.start()
        await engine.load(ADAPTER, adapter)
        tokenizer, prompts = load_tokenizer(tiny_base), [row.prompt for row in examples]
        form = one_of(labels)
        asked = await generate_with_engine(
            engine, tokenizer, prompts, adapter=ADAPTER, max_new_tokens=1, structure=form
        )
        await engine.close()
        return asked.texts

    assert asyncio.run(ask()) == held


def test_labels_of_the_base_are_the_likeliest_of_its_own(
    tiny_base: Path, tuned: Callable[[Path], Path]
) -> None:
    """They come from the base model's prompts, without the adapter."""
    from peft import PeftModel

    adapter, examples = tuned(tiny_base), rows(10)
    labels = ["Lodging", "Airlines", "neutral", "negative"]
    best = [f"Name the merchant category. {row.prompt}" for row in examples]
    found = answer(tiny_base, adapter, examples, SETTINGS, (), labels, best)
    model, tokenizer = load_base_model(tiny_base)
    expected = choose_labels(model, tokenizer, best, labels, packs=False)
    assert list(found.frame[BASE_LABELS]) == expected
    adapted = PeftModel.from_pretrained(model, adapter)
    assert expected != choose_labels(adapted, tokenizer, best, labels, packs=False)
    assert found.truncated[BASE_LABELS] == 0 and BASE_LABELS in found.seconds
    assert BASE_LABELS not in found.agreement  # the engine doesn't weigh answers
    assert BASE_LABELS not in answer(tiny_base, adapter, examples, SETTINGS, (), [], best).frame
