"""The likeliest label: packed rows and a trie give what one forward pass over each whole answer gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ops.evaluation.likelihood import (
    choose_labels,
    label_tokens,
    likeliest,
    make_trie,
    packed_scores,
    plain_scores,
)
from lora_ops.loading import load_base_model

LABELS = ["Other", "Other services", "Lodging", "Airlines", "O"]
"""One is the beginning of another one, and they have different numbers of tokens."""
CLOSE = 1e-4
"""Float32, sums of a few log-probabilities."""


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> tuple[Any, Any]:
    return load_base_model(tiny_base)


def questions(count: int) -> list[str]:
    """Return prompts that begin alike and are longer and longer."""
    return [f"Name the merchant category. {'at sea ' * number}{number}" for number in range(count)]


@torch.inference_mode()
def by_itself(model: Any, prompt: list[int], label: list[int], ends: list[int]) -> float:
    """Return the score of one label from one sequence, without padding, mask or cache."""
    logits = model(input_ids=torch.tensor([[*prompt, *label]])).logits[0].log_softmax(-1)
    steps = [logits[len(prompt) + place - 1, token] for place, token in enumerate(label)]
    return float(sum(steps) + logits[-1, ends].logsumexp(0))


def check(packed: list[list[float]], expected: torch.Tensor) -> None:
    """Compare scores: what is left out is a label that is clearly not the likeliest."""
    found = torch.tensor(packed)
    known = found.isfinite()
    torch.testing.assert_close(found[known], expected[known], rtol=0, atol=CLOSE)
    assert known.gather(1, expected.argmax(1, keepdim=True)).all()
    assert [likeliest(row) for row in packed] == [likeliest(row) for row in expected.tolist()]


@pytest.mark.parametrize("ends", [[1], [1, 5, 9]])
@pytest.mark.parametrize("count", [1, 7])
def test_scores_are_those_of_whole_answers(loaded: tuple[Any, Any], count: int, ends: list[int]) -> None:
    model, tokenizer = loaded
    prompts = tokenizer(questions(count), add_special_tokens=False)["input_ids"]
    labels = label_tokens(tokenizer, LABELS, ends)
    expected = torch.tensor([[by_itself(model, row, label, ends) for label in labels] for row in prompts])
    assert len({round(score, 3) for score in expected[0].tolist()}) == len(LABELS)
    plain = torch.tensor(plain_scores(model, prompts, labels, ends))
    torch.testing.assert_close(plain, expected, rtol=0, atol=CLOSE)
    for tokens in (1, 60, 10_000):
        check(packed_scores(model, prompts, labels, ends, pack_tokens=tokens), expected)


def test_scores_of_prompts_without_a_common_beginning(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    prompts = tokenizer(["sea 9", "at sea", "x"], add_special_tokens=False)["input_ids"]
    labels = label_tokens(tokenizer, LABELS, [1])
    plain = torch.tensor(plain_scores(model, prompts, labels, [1]))
    check(packed_scores(model, prompts, labels, [1]), plain)


def test_scores_of_all_answers_are_disjoint(loaded: tuple[Any, Any]) -> None:
    """With its end an answer is a whole one, so all answers of one token together are less than 1."""
    model, tokenizer = loaded
    prompts = tokenizer(questions(1), add_special_tokens=False)["input_ids"]
    labels = [[token] for token in range(len(tokenizer)) if token != 1]
    scores = torch.tensor(plain_scores(model, prompts, labels, [1]))[0]
    assert 0 < scores.exp().sum() < 1


def test_choose_labels_packed_or_not_are_the_same(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    found = choose_labels(model, tokenizer, questions(9), LABELS, packs=True)
    assert found == choose_labels(model, tokenizer, questions(9), LABELS, packs=False)
    assert set(found) <= set(LABELS)
    assert choose_labels(model, tokenizer, questions(9), LABELS[::-1], packs=True) == found


def test_likeliest_takes_the_first_of_equals() -> None:
    assert likeliest([-3.0, -2.0, -2.0, -4.0]) == 1
    assert likeliest([-3.0, -2.00001, -2.0]) == 1
    assert likeliest([-3.0, -2.1, -2.0]) == 2


def test_label_tokens_are_those_of_training_rows(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    written = tokenizer(["Other", "Other services"], add_special_tokens=False)["input_ids"]
    assert label_tokens(tokenizer, LABELS[:2], [tokenizer.eos_token_id]) == written


def test_make_trie_shares_what_begins_alike() -> None:
    trie = make_trie([[7, 8], [7], [7, 9, 8], [8]])
    assert trie.tokens == (7, 8, 9, 8, 8)
    assert trie.paths == ((0,), (0, 1), (0, 2), (0, 2, 3), (4,))
    assert trie.children(-1) == [0, 4] and trie.children(0) == [1, 2]
    assert trie.last == (1, 0, 3, 4)
