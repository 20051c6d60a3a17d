"""The prompts of the base model at its best: which examples, in which order, and what fits."""

from pathlib import Path

from lora_ops.evaluation.few_shot import (
    choose_shots,
    few_shot_prompts,
    prompts_with_labels,
    room,
    system_with_labels,
)
from lora_ops.loading import load_base_model, load_tokenizer
from lora_ops.records.data import PromptRecord
from lora_ops.records.example import Example

LABELS = ["Lodging", "Airlines", "Other"]


def example(number: int, target: str) -> Example:
    return Example(
        id=str(number), group="g", text=f"text {number}", target=target, prompt="-", completion=target
    )


def test_choose_shots_lets_the_labels_take_turns() -> None:
    train = [example(number, LABELS[0] if number % 2 else LABELS[1 + number % 4 // 2]) for number in range(40)]
    chosen = choose_shots(train, 4, LABELS)
    assert [shot.target for shot in chosen] == ["Lodging", "Airlines", "Other", "Lodging"]
    assert choose_shots(train[::-1], 4, LABELS) == chosen
    assert len(choose_shots(train, 100, LABELS)) == len(choose_shots(train, 100, [])) == 40
    assert choose_shots(train, 0, LABELS) == choose_shots(train, 0, []) == []


def test_few_shot_prompts_show_labels_and_answers(tiny_base: Path) -> None:
    shots = [example(1, "Lodging"), example(2, "Airlines")]
    prompt = PromptRecord(system="Name the merchant category.", labels=LABELS)
    tokenizer = load_tokenizer(tiny_base)
    (first, second), shown = few_shot_prompts(
        tokenizer, [example(8, "?"), example(9, "?")], shots, prompt, None
    )
    assert shown == 2
    assert "Answer with one of: Lodging, Airlines, Other." in first
    order = ["text 2", "Airlines", "text 1", "Lodging", "text 8"]
    after = first.index("Other.")
    places = [first.index(part, after) for part in order]
    assert places == sorted(places)
    assert "text 9" in second and "text 8" not in second


def test_few_shot_prompts_leave_out_what_has_no_room(tiny_base: Path) -> None:
    model, tokenizer = load_base_model(tiny_base)
    shots, rows = [example(number, "Lodging") for number in range(4)], [example(9, "?")]
    prompt = PromptRecord(system=None, labels=[])

    def length(count: int) -> int:
        (text,), _ = few_shot_prompts(tokenizer, rows, shots[:count], prompt, None)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert few_shot_prompts(tokenizer, rows, shots, prompt, length(2))[1] == 2
    assert few_shot_prompts(tokenizer, rows, shots, prompt, length(2) - 1)[1] == 1
    assert few_shot_prompts(tokenizer, rows, shots, prompt, 1) == ([], 0)
    assert few_shot_prompts(tokenizer, rows, [], prompt, None) == ([], 0)
    assert room(tiny_base, 48) == 2000
    long = [shot.model_copy(update={"text": "text " * 100}) for shot in shots]
    assert 0 < few_shot_prompts(tokenizer, rows, long, prompt, None)[1] < 4


def test_prompts_with_labels_need_no_example(tiny_base: Path) -> None:
    tokenizer, rows = load_tokenizer(tiny_base), [example(9, "?")]
    prompt = PromptRecord(system="Name the merchant category.", labels=LABELS)
    (listed,) = prompts_with_labels(tokenizer, rows, prompt, None)
    assert "Answer with one of: Lodging, Airlines, Other." in listed and "text 9" in listed
    assert prompts_with_labels(tokenizer, rows, prompt, 3) == ["-"]  # the row's own prompt


def test_system_with_labels_lists_them_once() -> None:
    asked = PromptRecord(system="Lodging, airlines or other?", labels=LABELS)
    assert system_with_labels(asked) == asked.system
    assert system_with_labels(PromptRecord(system=None, labels=["a, b", "c"])) == "Answer with one of: a, b; c."
    assert system_with_labels(PromptRecord(system="Answer.", labels=[])) == "Answer."


def test_choose_shots_of_written_answers_is_no_alphabet() -> None:
    """Each answer is a label of its own: in turns, all examples began with an A."""
    train = [example(number, f"{chr(65 + number % 26)} heading {number}") for number in range(260)]
    chosen = choose_shots(train, 6, [])
    assert len({shot.target[0] for shot in chosen}) > 3
    assert choose_shots(train[::-1], 6, []) == chosen
