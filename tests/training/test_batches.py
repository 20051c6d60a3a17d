"""Only completion tokens count, wherever padding puts them."""

from pathlib import Path

import torch

from lora_ops.loading import load_base_model
from lora_ops.records.example import Example
from lora_ops.training.batches import IGNORED, Tokens, batch_loss, collate, tokenize


def example(prompt: str, completion: str) -> Example:
    return Example(id="1", group="g", text="t", target="t", prompt=prompt, completion=completion)


def test_rows_end_together_and_shorter_answers_are_masked() -> None:
    batch = collate([Tokens([5, 6, 7], [8]), Tokens([5], [8, 9])], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [0, 5, 8, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert batch.labels.tolist() == [[IGNORED, 8], [8, 9]]


def test_the_loss_is_the_mean_over_completion_tokens_of_each_row_alone(tiny_base: Path) -> None:
    model, tokenizer = load_base_model(tiny_base)
    rows = tokenize(
        [example("a long question about airlines", "Airlines"), example("short", "Lodging, I say")], tokenizer
    )
    losses = []
    for row in rows:
        ids = torch.tensor([row.prompt + row.completion])
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        first = len(row.prompt)
        losses += [-logits[first - 1 + n, token] for n, token in enumerate(row.completion)]
    expected = torch.stack(losses).mean()
    assert torch.isclose(batch_loss(model, collate(rows, tokenizer.pad_token_id)), expected, atol=1e-5)


def test_prompt_tokens_have_no_influence_on_the_gradient_of_the_answer_mask(tiny_base: Path) -> None:
    model, tokenizer = load_base_model(tiny_base)
    row = tokenize([example("question", "answer")], tokenizer)
    batch = collate(row, tokenizer.pad_token_id)
    assert batch.labels.shape[1] == len(row[0].completion)
    assert batch.labels[0].tolist() == row[0].completion
