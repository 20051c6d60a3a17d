"""Examples as padded tensors in which only the completion counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_ops.records.example import Example

IGNORED = -100


@dataclass(frozen=True)
class Tokens:
    """Token ids of one example."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class PaddedBatch:
    """`rows` examples, padded on the left so that all completions end in the last column.

    Attributes:
        input_ids, attention_mask, position_ids: int64, (rows, columns).
        labels: int64, (rows, completion columns); `IGNORED` where a shorter completion has not begun.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: str) -> "PaddedBatch":
        """The same batch on another device."""
        return PaddedBatch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.position_ids.to(device),
            self.labels.to(device),
        )


def tokenize(examples: Sequence[Example], tokenizer: Any) -> list[Tokens]:
    """Prompt and completion of each example, tokenized apart so that the boundary is exact."""
    prompts = tokenizer([e.prompt for e in examples], add_special_tokens=False)["input_ids"]
    completions = tokenizer([e.completion for e in examples], add_special_tokens=False)["input_ids"]
    return [Tokens(p, c) for p, c in zip(prompts, completions, strict=True)]


def collate(rows: Sequence[Tokens], pad_token_id: int) -> PaddedBatch:
    """Pad `rows` into one batch."""
    columns = max(len(row.prompt) + len(row.completion) for row in rows)
    answer = max(len(row.completion) for row in rows)
    input_ids = torch.full((len(rows), columns), pad_token_id)
    attention_mask = torch.zeros((len(rows), columns), dtype=torch.long)
    labels = torch.full((len(rows), answer), IGNORED)
    for index, row in enumerate(rows):
        ids = row.prompt + row.completion
        input_ids[index, columns - len(ids) :] = torch.tensor(ids)
        attention_mask[index, columns - len(ids) :] = 1
        labels[index, answer - len(row.completion) :] = torch.tensor(row.completion)
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return PaddedBatch(input_ids, attention_mask, position_ids, labels)


def batch_loss(model: Any, batch: PaddedBatch) -> torch.Tensor:
    """Mean cross-entropy per completion token, a scalar.

    Only the columns that predict a completion token go through the output layer: over a vocabulary of
    49152 it is a fifth of a small model's work, and the prompt's share of it would be thrown away.
    """
    logits = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=batch.labels.shape[1] + 1,
        use_cache=False,
    ).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), batch.labels.reshape(-1), ignore_index=IGNORED
    )
